r"""Rate-based backpropagation: training whose memory does not grow with the number of time steps.

The network spikes for T steps without autograd; every neuron keeps its firing rate r and its eligibility e, the
derivative of r with respect to a constant shift of its input current. Then it runs once more, as an ANN, on the mean
over time of its input: neurons give the recorded r and pass gradients on as :math:`\partial L/\partial \bar c = e\,
\partial L/\partial r`.

Exact, that is equal to surrogate-gradient backpropagation through time: for the readout, at T = 1, with one hidden
layer and constant input, and in the linear regime (no leak memory, constant surrogate derivative, no batch
normalization). Otherwise it drops how errors and presynaptic spikes vary together over time, and takes every
neuron's error as constant: closest for static images and small decays, worst for what only timing tells.
Cost: T forward passes without autograd, one forward and one backward pass of an ANN; saved memory that of an ANN
(times K with K windows).

After Yu et al. 2024, arXiv 2410.11488; windows, win frequencies of max-pooling, gradients of neuron parameters and
the natural scale of the gradient are ours. Not to be confused with networks that are trained as ANNs and converted
(here the spikes are real), nor with `SurrogateGradient`, whose memory grows with T.
"""

from __future__ import annotations

import warnings
from typing import Literal

from torch import Tensor, nn

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.rate.drift import DriftWatch
from lightning_snn.methods.rate.rules import Plan, rate_refusals
from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.nn.folding import run
from lightning_snn.nn.layer_rules import refuse

# a moment in time is no mean over it
_REFUSED_READOUTS = ("last", "max")


class RateBackprop(Method):
    """Backpropagation through firing rates; the objective is the loss, on the true spiking outputs.

    Args:
        window: number K of windows that T is cut into, a divisor of T; gradients are those of rates within each window,
            and membranes are carried between them without a gradient. 1 is the method of the paper. Events, whose
            mean frame blurs what moved, learn far better with a few (5 windows of 2 steps each, say); memory grows
            with K. "step" is a window for every step: a gradient through space alone, which recurrent layers bear too.
        streaming: call the network once a step: slower, but not even the spiking pass needs memory that grows with T.
        grad_scale: "natural", with the norm of backpropagation through time, or "paper", which is that over T.
        check_drift: on the first training step, warn of modules whose rates are not the means of their spikes: they
            hold an operation that no rate rule covers.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> module = SpikingModule(network, RateBackprop(), num_classes=10)
    """

    citation = """@inproceedings{yu2024advancing,
  title = {Advancing Training Efficiency of Deep Spiking Neural Networks through Rate-based Backpropagation},
  author = {Yu, Chengting and Liu, Lei and Wang, Gaoang and Li, Erping and Wang, Aili},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2024},
  note = {arXiv:2410.11488}
}"""

    def __init__(
        self,
        window: int | Literal["step"] = 1,
        streaming: bool = False,
        grad_scale: Literal["natural", "paper"] = "natural",
        check_drift: bool = True,
    ) -> None:
        super().__init__()
        if window != "step":
            check_integer("window", window)
        check_choice("grad_scale", grad_scale, ("natural", "paper"))
        self.window, self.streaming, self.grad_scale = window, streaming, grad_scale
        self.check_drift = check_drift

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network itself.

        Raises:
            ValueError: naming what mean rates cannot represent: recurrence (but for windows of one step), modules
                without a rate rule, a readout of the last step or of the maximum over time.
        """
        if self.task.readout in _REFUSED_READOUTS:
            raise ValueError(
                'Expected argument `readout` to be "mean", "sum" or a function that weighs all steps for RateBackprop, '
                f"but got {self.task.readout!r}"
            )
        refuse("RateBackprop", rate_refusals(network, self.window == "step"))
        return network

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        return self.step_on_loss(self._run(network, x), y)

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        steps = x.shape[0]
        if steps == 1:
            # the same gradient, for less
            return run(network, x)
        windows = steps if self.window == "step" else self.window
        scale = 1 / steps if self.grad_scale == "paper" else 1.0
        if not self.check_drift:
            return rate_run(network, x, windows, self.streaming, scale)
        self.check_drift = False
        with DriftWatch(network, Plan(steps, windows, self.streaming)) as watch:
            outputs = rate_run(network, x, windows, self.streaming, scale)
        if watch.at_fault:
            warnings.warn(
                "The rates of these modules are not the means of their spiking outputs, so that gradients behind them "
                f"are not those of the rates: {', '.join(watch.at_fault)}. They hold an operation without a rate rule; "
                "make it a module and see `register_rate_rule`",
                stacklevel=2,
            )
        return outputs

    def extra_repr(self) -> str:
        parts = [f"window={self.window}"]
        parts += ["streaming=True"] if self.streaming else []
        parts += [f"grad_scale={self.grad_scale}"] if self.grad_scale != "natural" else []
        return ", ".join(parts)
