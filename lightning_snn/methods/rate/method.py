r"""Rate-based backpropagation: training whose memory does not grow with the number of time steps.

The network spikes for T steps without autograd. Every neuron records its firing rate r and its eligibility e, the
derivative of r with respect to a constant shift of its input current c. Then the network runs once more, as an ANN, on
the mean over time of its input: neurons return the recorded r, and the gradient of their mean current is
:math:`\partial L/\partial \bar c = e\, \partial L/\partial r`.

Exact, that is equal to surrogate-gradient backpropagation through time: for the readout, at T = 1, with one hidden
layer and constant input, and in the linear regime (no leak memory, constant surrogate derivative, no batch
normalization). Otherwise it neglects the covariance over time of errors and presynaptic spikes, and takes the error of
every neuron as constant. It is closest for static images and small decays, and worst if only the timing of spikes
carries information. Linked windows (`functional.linked_windows`) lie between this gradient and that of backpropagation
through time, which they are with one window per step.
Cost: T forward passes without autograd, one forward and one backward pass of an ANN. The saved memory is that of an ANN
(times K with K windows).

After Yu et al. 2024, arXiv 2410.11488. Windows and their links, the gradient of max-pooling by the share of maxima,
gradients of neuron parameters and the natural scale of the gradient are additions of this library. Not to be confused
with ANN-to-SNN conversion (here the network spikes while training), nor with `SurrogateGradient`, whose memory grows
with T.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.rate.drift import DriftMonitor
from lightning_snn.methods.rate.rules import Plan, padding_refusals, rate_refusals
from lightning_snn.methods.rate.tape import rate_run, replaced_layers
from lightning_snn.methods.tasks import Task
from lightning_snn.nn.folding import check_samples, run
from lightning_snn.nn.inputs import first_input
from lightning_snn.nn.layer_rules import refuse
from lightning_snn.nn.lengths import lengths_of, normalizing_refusals
from lightning_snn.nn.observation import named_spiking_layers

# these depend on single time steps, which rates do not represent
_REFUSED_READOUTS = ("last", "max")


class RateBackprop(Method):
    """Backpropagation through firing rates; the objective is the loss of the spiking outputs.

    Args:
        window: number K of windows that T is divided into, a divisor of T. Gradients are those of the rates within each
            window, and states of neurons pass between windows without a gradient, unless they are linked. 1 is the
            method of the paper. The mean over all steps blurs motion, so event data learn better with a few windows:
            linked at any decay, without links at small decays only (`methods.rate.gradient_decomposition` recommends
            numbers). Memory grows with K. "step" is one window per step: without links a gradient through the layers
            but not through time, which recurrent layers support too.
        link: pass errors from window to window through the states of neurons. Cutting them there loses credit, most of
            it at large decays, where unlinked windows can be worse than one window. With K = T, or "step", the gradient
            is that of backpropagation through time. Recurrent layers are not supported. With one window there is
            nothing to link.
        streaming: call the network once per step: slower, but the memory of the spiking pass does not grow with T
            either.
        grad_scale: "natural", with the norm of backpropagation through time, or "paper", which is that over T.
        check_drift: on the first training step, warn about modules with operations that have no rate rule, so their
            rates are not the means of their spikes.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> method = RateBackprop(window=2)
        >>> step = method.training_step(method.prepare(network), x, y)
        >>> step.objective.backward()
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
        link: bool = False,
    ) -> None:
        super().__init__()
        if window != "step":
            check_integer("window", window)
        check_choice("grad_scale", grad_scale, ("natural", "paper"))
        self.window, self.streaming, self.grad_scale = window, streaming, grad_scale
        self.link = link
        self.check_drift = check_drift
        self._checks_drift = check_drift  # until the first training step

    def task_refusal(self, task: Task) -> str | None:
        """Return why the method cannot learn a task: its loss depends on single steps, which rates do not represent."""
        if task.per_step:
            if self.window == "step":
                return None
            return (
                "its loss is that of single steps, and rates are means over several. Use "
                'RateBackprop(window="step"), or a task whose loss is that of the readout'
            )
        if task.readout in _REFUSED_READOUTS:
            return (
                'its readout depends on single steps, and rates are means over several. Use readout="mean", "sum" or a '
                "function of all steps"
            )
        return None

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the network itself.

        Raises:
            ValueError: if mean rates cannot represent the network: recurrence (except with windows of one step), or
                modules without a rate rule. The message names all such modules.
        """
        name = "RateBackprop(link=True)" if self.link else "RateBackprop"
        refuse(name, rate_refusals(network, self.window == "step" and not self.link))
        return network

    def intercepted_layers(self, network: nn.Module) -> Iterable[nn.Module]:
        return [*super().intercepted_layers(network), *replaced_layers(network)]

    @property
    def compiles_lengths(self) -> bool:
        return self.window == "step"

    def check_time_steps(self, time_steps: int) -> None:
        if self.window != "step" and time_steps % self.window:
            divisors = ", ".join(str(each) for each in range(1, time_steps + 1) if time_steps % each == 0)
            raise ValueError(
                f"Expected argument `window` to divide the number of time steps {time_steps}, but got "
                f"{self.window}. Choose one of {divisors}"
            )

    def check_lengths(self, network: nn.Module) -> None:
        """Check that rates can be means over the valid steps of each sample.

        Raises:
            ValueError: if they cannot, with several windows, the scale of the paper, penalties on the rates of one
                window, batch normalization while training, or modules whose rule counts padding.
        """
        super().check_lengths(network)
        name = "RateBackprop on batches with `lengths`"
        remedy = 'Use SurrogateGradient, or RateBackprop(window="step")'
        if self.window not in (1, "step"):
            raise ValueError(
                f'Expected argument `window` to be 1 or "step" for {name}, because windows of all samples have the '
                f"same steps, but got {self.window}"
            )
        if self.grad_scale == "paper":
            raise ValueError(f"Expected argument `grad_scale` to be 'natural' for {name}, but got 'paper'")
        refuse(name, normalizing_refusals(network))
        if self.window == "step":
            return
        if self.penalties:
            raise ValueError(
                f"Expected no `penalties` for {name} with window=1, whose rates have another weight for each sample, "
                f"but got {', '.join(self.penalties)}. {remedy}"
            )
        refuse(name, padding_refusals(network), remedy)

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_samples(x)
        self.check_time_steps(first_input(x).shape[0])
        return self.step_on_loss(self._run(network, x), y)

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        steps, samples = first_input(x).shape[:2]
        if steps == 1:
            outputs: Tensor = run(network, x)  # the same gradient, in one pass
            return outputs
        windows = steps if self.window == "step" else self.window
        scale = 1 / steps if self.grad_scale == "paper" else 1.0
        if torch.compiler.is_compiling() or not self._checks_drift:
            return rate_run(network, x, windows, self.streaming, scale, self.link)
        self._checks_drift = False
        _warn_of_hooks(network)
        lengths = None if windows == steps else lengths_of(samples)
        with DriftMonitor(network, Plan(steps, windows, self.streaming, lengths=lengths)) as monitor:
            outputs = rate_run(network, x, windows, self.streaming, scale, self.link)
        if monitor.sources:
            warnings.warn(
                "RateBackprop has no rule for an operation in these modules, so gradients through them are wrong: "
                f"{', '.join(monitor.sources)}. Make the operation a module and register its rule with "
                "`register_rate_rule`",
                stacklevel=2,
            )
        return outputs

    def extra_repr(self) -> str:
        parts = [f"window={self.window}"]
        parts += ["link=True"] if self.link else []
        parts += ["streaming=True"] if self.streaming else []
        parts += [f"grad_scale={self.grad_scale}"] if self.grad_scale != "natural" else []
        return ", ".join(parts)


def _warn_of_hooks(network: nn.Module) -> None:
    """Warn of forward hooks of the user on spiking layers, because a penalty that they compute has no gradient."""
    hooked = [
        name
        for name, layer in named_spiking_layers(network).items()
        if any(not _is_known(hook) for hook in layer._forward_hooks.values())
    ]
    if hooked:
        warnings.warn(
            f"Forward hooks on {', '.join(hooked)} see the spiking pass of RateBackprop, which has no gradient. A "
            "penalty that a hook adds to the loss does not train: pass it as `SpikingModule(penalties=...)`",
            stacklevel=4,
        )


def _is_known(hook: object) -> bool:
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", "")).split(".")[0] in ("lightning_snn", "lightning", "torch")
