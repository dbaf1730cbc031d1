"""Fine-tuning for hardware: training at full precision first, then under the limits of a chip.

Gradients stay exact but for rounding and clipping, which are straight-through. Spike times are those of networks of
time to first spike, after Stanojevic et al. 2024, arXiv 2306.08744; weights are those of any network.
"""

from lightning_snn.callbacks.hardware.constrained import Constrained, export_weights, shorten_windows
from lightning_snn.callbacks.hardware.constraints import HardwareConstraints
from lightning_snn.callbacks.hardware.fine_tuning import HardwareFineTuning

__all__ = ["Constrained", "HardwareConstraints", "HardwareFineTuning", "export_weights", "shorten_windows"]
