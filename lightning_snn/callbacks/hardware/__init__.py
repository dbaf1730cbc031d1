"""Fine-tuning for hardware: training at full precision first, then under the constraints of a chip.

Gradients are exact except for rounding and clipping, which are straight-through. Constraints on spike times apply to
time-to-first-spike networks, after Stanojevic et al. 2024, arXiv 2306.08744; those on weights apply to any network.
"""

from lightning_snn.callbacks.hardware.constrained import Constrained, export_weights, shorten_windows
from lightning_snn.callbacks.hardware.constraints import HardwareConstraints
from lightning_snn.callbacks.hardware.fine_tuning import HardwareFineTuning

__all__ = ["Constrained", "HardwareConstraints", "HardwareFineTuning", "export_weights", "shorten_windows"]
