"""Surrogate-gradient backpropagation through time, the standard baseline.

Computes the gradient of the loss through the unrolled network, with the derivative of each spike replaced by that of
its layer's surrogate. The forward pass is exact. The gradient is in general not that of any function, and
unbiased only if the surrogate is.
Cost: O(T) time and memory. After Neftci, Mostafa & Zenke 2019. Not to be confused with rate-based backpropagation,
whose memory does not grow with T.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_snn.methods.base import Method, Step
from lightning_snn.nn.folding import run


class SurrogateGradient(Method):
    """Backpropagation through time with surrogate derivatives; the objective is the loss.

    Example:
        >>> module = SpikingModule(network, SurrogateGradient(), num_classes=3)
        >>> step = module.method.training_step(module.network, x, y)
        >>> step.objective.backward()
    """

    citation = """@article{neftci2019surrogate,
  title = {Surrogate gradient learning in spiking neural networks},
  author = {Neftci, Emre O. and Mostafa, Hesham and Zenke, Friedemann},
  journal = {IEEE Signal Processing Magazine}, volume = {36}, number = {6}, pages = {51--63}, year = {2019}
}"""

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        return self.step_on_loss(run(network, x), y)
