r"""Time to first spike: networks of neurons that spike at most once, trained with exact gradients of spike times.

Neurons integrate their inputs during the input window; then their potential rises with unit slope to a threshold. Early
spikes are large values. In closed form the remaining times are :math:`\hat x = \max(0, W \hat x + D)`: forward pass,
gradients and the trajectory of any first-order optimizer are those of the ReLU network with weights W and biases D.
Exact up to rounding if windows are long enough for the largest value; they grow with it, which does not change outputs.
Spike times matter if hardware perturbs them: see the callback `HardwareFineTuning`.
Cost: that of the ReLU network, whatever the resolution of time; there are no time steps.

After Stanojevic et al. 2024, arXiv 2306.08744. The conversion of skip connections and the activity penalty are ours.
This is neither `LatencyEncoder`, which codes inputs by the step of their spike, nor a surrogate gradient: nothing is
approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_choice, check_integer
from lightning_snn.functional.ttfs import OVERFLOWS, Overflow
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.tasks import Task
from lightning_snn.methods.ttfs.mapping import from_relu
from lightning_snn.methods.ttfs.neurons import first_spike_layers
from lightning_snn.methods.ttfs.windows import grow, latency
from lightning_snn.nn.folding import check_samples, run
from lightning_snn.nn.run_context import outputs_observed


class TimeToFirstSpike(Method):
    r"""Training of a ReLU network as a network of first-spike neurons; the objective is the loss on exact spike times.

    A batch is ``(x [1, B, ...], y [B])``: a static input is presented once. Further time steps are independent
    presentations, and the task's readout combines their outputs.

    Args:
        input_range: (low, high) of the inputs: low causes no spike, high spikes at time 0, values outside are clamped.
        input_shape: shape of a sample, `[C, H, W]` for images. None is sufficient for networks that start with a linear
            layer, which has the number of inputs.
        activity_penalty: :math:`\lambda` of the penalty :math:`\lambda \sum_i \hat x_i` per sample over hidden neurons,
            at least 0; reduces the number of spikes.
        gamma: windows grow while training to gamma times the largest activation, at least 1: long windows rarely
            overflow, short windows have a low latency. None keeps the windows.
        overflow: effect on spikes that would come before their window: "pass", "clip" or "error", see `FirstSpike`.
        skips: spikes that skip layers go through a "delay" line, or are "relay"ed by additional neurons.
        time_domain: compute each activation from its absolute spike time, with the rounding of that time.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> method = TimeToFirstSpike(activity_penalty=1e-3)
        >>> network = method.prepare(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)))
        >>> step = method.training_step(network, torch.rand(1, 6, 8), torch.arange(6) % 3)
        >>> step.objective.backward()
        >>> method.predict(network, torch.rand(1, 5, 8)).mean.shape
        torch.Size([5, 3])
    """

    penalty_refusal = "its neurons spike at most once; use `TimeToFirstSpike(activity_penalty=...)`"

    citation = """@article{stanojevic2024high,
  title = {High-performance deep spiking neural networks with 0.3 spikes per neuron},
  author = {Stanojevic, Ana and Wo{\\'z}niak, Stanis{\\l}aw and Bellec, Guillaume and Cherubini, Giovanni and
            Pantazi, Angeliki and Gerstner, Wulfram},
  journal = {Nature Communications}, volume = {15}, pages = {6793}, year = {2024},
  note = {arXiv:2306.08744}
}"""

    def __init__(
        self,
        input_range: tuple[float, float] = (0.0, 1.0),
        input_shape: Sequence[int] | None = None,
        activity_penalty: float = 0.0,
        gamma: float | None = 10.0,
        overflow: Overflow = "pass",
        skips: Literal["delay", "relay"] = "delay",
        time_domain: bool = False,
    ) -> None:
        super().__init__()
        low, high = input_range
        check_between("input_range", low, -float("inf"), float("inf"))
        check_between("input_range", high, low, float("inf"))
        if low == high:
            raise ValueError(
                f"Expected argument `input_range` to be (low, high) with low < high, but got {input_range!r}"
            )
        for size in () if input_shape is None else input_shape:
            check_integer("input_shape", size)
        check_between("activity_penalty", activity_penalty, 0, float("inf"))
        if gamma is not None:
            check_between("gamma", gamma, 1, float("inf"))
        check_choice("overflow", overflow, OVERFLOWS)
        check_choice("skips", skips, ("delay", "relay"))
        self.input_range, self.input_shape, self.activity_penalty = input_range, input_shape, activity_penalty
        self.gamma, self.overflow, self.skips, self.time_domain = gamma, overflow, skips, time_domain

    def task_refusal(self, task: Task) -> str | None:
        """Return why the method cannot learn a task: it has a loss of each time step."""
        if not task.per_step:
            return None
        return (
            "its loss is that of single time steps, and a network of first spikes has one output per presentation. Use "
            "a task whose loss is that of the readout, such as CrossEntropy or Regression()"
        )

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the network converted to first-spike neurons, or a copy of a network that has `FirstSpike` layers.

        Raises:
            ValueError: if the network has no TTFS equivalent; the message names each refused layer or operation with
                its reason. Or if `input_shape` is missing or does not match the network.
        """
        if first_spike_layers(network):
            mapped = copy.deepcopy(network)
        else:
            low, high = self.input_range
            mapped = from_relu(network, low, high, torch.zeros(1, *self._sample_shape(network)), self.skips)
        for layer in first_spike_layers(mapped).values():
            layer.overflow, layer.time_domain = self.overflow, self.time_domain
        return mapped

    def _sample_shape(self, network: nn.Module) -> Sequence[int]:
        if self.input_shape is not None:
            return self.input_shape
        # other layers, for example Flatten, do not have the shape of their inputs
        layers = (
            each for each in network.modules() if isinstance(each, nn.Linear) or next(each.children(), None) is None
        )
        first = next(layers, network)
        if not isinstance(first, nn.Linear):
            raise ValueError(
                "Expected argument `input_shape` to be the shape of a sample for a network that starts with "
                f"{type(first).__name__} and not with Linear, but got None"
            )
        return (first.in_features,)

    def check_lengths(self, network: nn.Module) -> None:
        """Refuse sequences of different lengths, because time steps are independent presentations here.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Expected no argument `lengths` in batches of TimeToFirstSpike, whose time steps are independent "
            "presentations of static inputs. Leave the lengths out, or use another method"
        )

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_samples(x)
        activity: list[Tensor] = []
        layers = self.intercepted_layers(network)

        def add(layer: nn.Module, inputs: Any, remaining: Tensor) -> None:
            activity.append(remaining.sum(dtype=torch.promote_types(remaining.dtype, torch.float32)))

        with outputs_observed(layers, add):
            step = self.step_on_loss(run(network, x), y)
        objective = step.objective
        if self.activity_penalty:
            presentations = x.shape[0] * x.shape[1]
            objective = objective + self.activity_penalty * torch.stack(activity).sum() / presentations
        return replace(step, objective=objective, metrics=self._adapt(network))

    def intercepted_layers(self, network: nn.Module) -> Iterable[nn.Module]:
        return first_spike_layers(network).values() if self.activity_penalty else ()

    def _adapt(self, network: nn.Module) -> dict[str, Tensor]:
        """Grow windows; this depends on the batch only, so it may precede the optimizer's step."""
        metrics: dict[str, Tensor] = {}
        overflows = [layer.overflow_fraction for layer in first_spike_layers(network).values()]
        counted = [overflow for overflow in overflows if overflow is not None]
        if counted:
            metrics["overflow_fraction"] = torch.stack(counted).mean()
        used = None if self.gamma is None else grow(network, self.gamma)
        if used is not None:
            metrics["window_used"] = used.float()
        return {**metrics, "latency": latency(network).float()}

    def extra_repr(self) -> str:
        parts = [f"input_range={self.input_range}", f"activity_penalty={self.activity_penalty:g}"]
        parts += [f"gamma={self.gamma}"]
        options: dict[str, Any] = {"overflow": "pass", "skips": "delay", "time_domain": False, "input_shape": None}
        parts += [f"{name}={value!r}" for name in options if (value := getattr(self, name)) != options[name]]
        return ", ".join(parts)
