"""Report on the latency of a time-to-first-spike network: accuracy by the length of windows and by time steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_choice, check_fraction, check_integer
from lightning_snn.functional.linear_response import accuracy_under_noise, gain_and_noise
from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.methods.ttfs.clipping import optimized_windows, sequential_noise, windows_of_steps
from lightning_snn.methods.ttfs.observed import (
    Batches,
    LayerActivity,
    ObservedActivations,
    observed_activations,
    outputs,
)
from lightning_snn.methods.ttfs.time_window import TimeWindow
from lightning_snn.methods.ttfs.windows import latency, set_windows

LARGEST, OPTIMIZED = "largest / k", "optimized"


@dataclass(frozen=True)
class LatencyRow:
    """Windows of all layers, with the noise and the accuracy that they cause.

    Attributes:
        rule: choice of the windows: "largest / k", or "optimized" for the least predicted noise.
        factor: k, the divisor of the sum of the windows of all neurons.
        steps: time steps of each window; None for continuous times.
        windows: length of the window of each layer of neurons by name, in units of the input window, for `set_windows`.
        latency: time of the readout, in units of the input window.
        gains: gain a_n of each layer of neurons at its sequential window.
        noise: noise-to-signal ratio of each layer of neurons at its sequential window.
        predicted_noise: their sum with that of rounded inputs, the predicted ratio of the logits.
        predicted_accuracy: accuracy of the logits with Gaussian noise of this ratio.
        measured_noise: ratio of the logits of the clipped network; None if it was not measured.
        measured_accuracy: accuracy of the clipped network; None if it was not measured.
        fine_tuned_accuracy: its accuracy after fine-tuning; None without fine-tuning.
    """

    rule: str
    factor: float
    steps: int | None
    windows: Mapping[str, float]
    latency: float
    gains: Mapping[str, float]
    noise: Mapping[str, float]
    predicted_noise: float
    predicted_accuracy: float
    measured_noise: float | None = None
    measured_accuracy: float | None = None
    fine_tuned_accuracy: float | None = None


@dataclass(frozen=True)
class LatencyReport:
    """Report of `latency_report`. Printed, it is a table.

    Attributes:
        layers: activations of each layer, in causal order.
        accuracy: accuracy without clipping and rounding.
        latency: time of the readout if windows are as long as the largest activations, in units of the input window.
        by_factor: rows of shorter windows, for each factor "largest / k" and, above 1, "optimized".
        by_steps: rows of windows with time steps, for each number of steps "largest / k" with k = 1 and "optimized".
    """

    layers: tuple[LayerActivity, ...]
    accuracy: float
    latency: float
    by_factor: tuple[LatencyRow, ...]
    by_steps: tuple[LatencyRow, ...]

    def windows(self, factor: float, rule: str = OPTIMIZED) -> Mapping[str, float]:
        """Return the windows of a row of `by_factor`, for `set_windows`.

        Args:
            factor: factor of the row.
            rule: "optimized" or "largest / k".

        Raises:
            ValueError: if there is no such row.
        """
        rows = {(row.rule, row.factor): row for row in self.by_factor}
        check_choice("rule", rule, (LARGEST, OPTIMIZED))
        check_choice("factor", factor, tuple(dict.fromkeys(row.factor for row in self.by_factor)))
        return rows[LARGEST if factor == 1 else rule, factor].windows

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """Return latencies and accuracies by rule, for `lightning_snn.figures.accuracy_by_latency`."""
        curves: dict[str, dict[str, list[float]]] = {}
        for rule in dict.fromkeys(row.rule for row in self.by_factor):
            rows = [row for row in self.by_factor if row.rule == rule]
            curves[rule] = {"latency": [row.latency for row in rows]}
            for kind in ("predicted", "measured", "fine_tuned"):
                values = [value for row in rows if (value := getattr(row, f"{kind}_accuracy")) is not None]
                curves[rule] |= {kind.replace("_", "-"): values} if values else {}
        return curves

    def __str__(self) -> str:
        levels = list(self.layers[0].quantiles)
        lines = [f"{'layer':<16}  {'spikes':>6}  " + "".join(f"{100 * level:>7g} %" for level in levels) + "  largest"]
        lines += [
            f"{layer.name:<16}  {layer.active:>6.2f}  "
            + "".join(f"{layer.quantiles[level]:>9.3g}" for level in levels)
            + f"  {layer.largest:>7.3g}"
            for layer in self.layers
        ]
        lines += [
            "",
            f"accuracy {100 * self.accuracy:.2f} % at latency {self.latency:.4g}, with windows as long as the largest "
            "activations",
        ]
        for name, rows in (("k", self.by_factor), ("steps", self.by_steps)):
            lines += ["", *_table(name, rows)] if rows else []
        return "\n".join(lines)


def latency_report(
    network: nn.Module,
    data: Batches,
    *,
    evaluation: Batches | None = None,
    factors: Sequence[float] = (1, 2, 4, 6, 8, 12, 16),
    steps: Sequence[int] = (),
    quantiles: Sequence[float] = (0.5, 0.9, 0.99, 0.999),
    measure: bool = False,
    fine_tune: Callable[[nn.Module], Any] | None = None,
) -> LatencyReport:
    r"""Report the accuracy that shorter windows and fewer time steps leave, predicted from the activations.

    Windows of length :math:`\Delta_n` clip the activations x of a layer. Its gain is :math:`a_n = E[x r] / E[x^2]` and
    its noise-to-signal ratio :math:`E[r^2] E[x^2] / E[x r]^2 - 1`, at the sequential window :math:`\Delta_n /
    \prod_{m<n} a_m`. The sum over layers predicts the ratio of the logits, and Gaussian noise of this ratio on the
    logits the accuracy. For windows shorter than about an eighth of the largest activation it is too optimistic.

    Scaling the time of the whole network is free: with all biases, the weights of the first layer and the windows
    multiplied by c, and the weights of the readout by 1 / c, logits are the same.

    Args:
        network: network with `FirstSpike` layers, for example from `from_relu`; it is left unchanged.
        data: batches ``(x [B, ...], y [B])`` of inputs of the network and classes, such as training data: windows are
            chosen from these.
        evaluation: batches of which accuracies are reported, such as test data, in the same order each time; None takes
            `data`.
        factors: divisors k of the sum of the windows of all neurons, at least 1.
        steps: numbers of equal time steps of a window, at least 1.
        quantiles: levels of the quantiles of activations to report, between 0 and 1.
        measure: whether to run the network with the windows of each row, too: once over `evaluation` per row.
        fine_tune: function that trains a network in place, called for each row with a copy that has its windows, for
            the accuracy after fine-tuning. The copy clips and rounds, and its windows do not adapt. None does not.

    Returns:
        The report. If processes work together, activations are those of all of them, which all have to call this
        function, and accuracies are those of the batches of this process.

    Raises:
        ValueError: if an argument is outside its range, there are no `FirstSpike` layers or no batches, layers never
            spike, potentials are NaN or infinite, an iterator was passed that has to be read more than once, or
            batches to measure are shuffled.

    Example:
        >>> from lightning_snn.methods.ttfs import from_relu
        >>> relu = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = [(torch.rand(64, 4), torch.arange(64) % 3)]
        >>> network = from_relu(relu, 0.0, 1.0, data[0][0])
        >>> report = latency_report(network, data, factors=(1, 4), measure=True)
        >>> print(report)
        layer             spikes ...
        >>> set_windows(network, report.windows(factor=4))
    """
    _check(factors, steps, quantiles)
    evaluation = data if evaluation is None else evaluation
    repeated = {"data": evaluation is data, "evaluation": measure or fine_tune is not None}
    for name, batches in (("data", data), ("evaluation", evaluation)):
        if repeated[name] and iter(batches) is batches:
            raise ValueError(
                f"Expected argument `{name}` to be batches that can be read several times, such as a list or a "
                f"DataLoader, but got {type(batches).__name__}. Pass `list(...)` of it"
            )
    activations = observed_activations(network, data, quantiles)
    logits, labels = outputs(network, evaluation)
    rules = (LARGEST, OPTIMIZED)
    # with the largest windows there is no noise
    asked: list[tuple[str, float, int | None]] = [
        (rule, factor, None) for factor in factors for rule in (rules if factor > 1 else (LARGEST,))
    ]
    asked += [(rule, 1, number) for number in steps for rule in rules]
    rows = []
    for rule, factor, number in asked:
        trial = copy.deepcopy(network)
        row = _predicted(trial, activations, rule, factor, number, (logits, labels))
        row = _measured(trial, row, evaluation, (logits, labels)) if measure else row
        rows.append(row if fine_tune is None else _fine_tuned(trial, row, evaluation, fine_tune))
    longest = copy.deepcopy(network)
    set_windows(longest, activations.by_name(activations.largest))
    return LatencyReport(
        activations.activity,
        _accuracy(logits, labels),
        latency(longest).item(),
        tuple(row for row in rows if row.steps is None),
        tuple(row for row in rows if row.steps is not None),
    )


def _predicted(
    trial: nn.Module,
    activations: ObservedActivations,
    rule: str,
    factor: float,
    steps: int | None,
    evaluation: tuple[Tensor, Tensor],
) -> LatencyRow:
    """Choose the windows of a row, set them in a copy of the network, and predict the accuracy of this copy."""
    layers, free = activations.layers, activations.free
    windows = activations.largest.where(~free, activations.largest / factor)
    if rule == OPTIMIZED:
        windows = (
            optimized_windows(layers, windows, free)
            if steps is None
            else windows_of_steps(layers, windows, free, steps)
        )
    gains, ratios = sequential_noise(layers, windows, steps)
    # of one spike per layer and sample, rounding may leave less than 0
    noise = max(ratios.sum().item(), 0.0)
    named = activations.by_name(windows)
    set_windows(trial, named)
    return LatencyRow(
        rule,
        factor,
        steps,
        named,
        latency(trial).item(),
        activations.by_name(gains),
        activations.by_name(ratios),
        noise,
        accuracy_under_noise(*evaluation, noise).item(),
    )


def _measured(trial: nn.Module, row: LatencyRow, evaluation: Batches, known: tuple[Tensor, Tensor]) -> LatencyRow:
    """Return a row with noise and accuracy of a copy of the network that has its windows."""
    logits, labels = outputs(trial, evaluation, "clip", _constraints(row))
    if not torch.equal(labels, known[1]):
        raise ValueError(
            "Expected argument `evaluation`, or `data` without it, to give the same batches each time, but got others. "
            "Do not shuffle them"
        )
    noise = gain_and_noise(known[0], logits)[1].item()
    return replace(row, measured_noise=noise, measured_accuracy=_accuracy(logits, labels))


def _fine_tuned(
    trial: nn.Module, row: LatencyRow, evaluation: Batches, fine_tune: Callable[[nn.Module], Any]
) -> LatencyRow:
    """Return a row with the accuracy of a copy of the network after fine-tuning under its windows and steps."""
    for layer in trial.modules():
        if isinstance(layer, TimeWindow):
            layer.constraints = _constraints(row)
    fine_tune(trial)
    return replace(row, fine_tuned_accuracy=_accuracy(*outputs(trial, evaluation, "clip", _constraints(row))))


def _constraints(row: LatencyRow) -> TimeConstraints | None:
    return None if row.steps is None else TimeConstraints(time_steps=row.steps)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def _check(factors: Sequence[float], steps: Sequence[int], quantiles: Sequence[float]) -> None:
    for factor in factors:
        check_between("factors", factor, 1, float("inf"))
    for number in steps:
        check_integer("steps", number)
    for level in quantiles:
        check_fraction("quantiles", level)


def _table(name: str, rows: Sequence[LatencyRow]) -> list[str]:
    """Return the lines of a table with one row per choice of windows."""
    tuned = any(row.fine_tuned_accuracy is not None for row in rows)
    measured = any(row.measured_accuracy is not None for row in rows)
    names = ["noise", "accuracy"] + ["measured noise", "accuracy"] * measured + ["fine-tuned"] * tuned
    lines = [f"{'windows':<12}  {name:>5}  {'latency':>7}  " + "  ".join(f"{each:>14}" for each in names)]
    for row in rows:
        numbers = [f"{row.predicted_noise:.3f}", f"{100 * row.predicted_accuracy:.2f} %"]
        if row.measured_noise is not None and row.measured_accuracy is not None:
            numbers += [f"{row.measured_noise:.3f}", f"{100 * row.measured_accuracy:.2f} %"]
        if row.fine_tuned_accuracy is not None:
            numbers += [f"{100 * row.fine_tuned_accuracy:.2f} %"]
        value = row.factor if row.steps is None else row.steps
        lines.append(
            f"{row.rule:<12}  {value:>5g}  {row.latency:>7.4g}  " + "  ".join(f"{each:>14}" for each in numbers)
        )
    return lines
