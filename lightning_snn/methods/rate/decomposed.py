"""Result of `gradient_decomposition`: terms and errors by layer, recommended windows, and their table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class WindowErrors(NamedTuple):
    """Errors of the gradient of K windows, relative to that through time, at least 0.

    Attributes:
        linked_predicted: with linked windows, from one run through time.
        linked_measured: with linked windows; nan if not measured.
        detached_predicted: without links, from one run through time.
        detached_measured: without links; nan if not measured.
        white: error of one window times the share within windows if steps are independent.
        walk: error of one window times the share within windows of a random walk, about 1 / K.
        lost_credit: share of the credit that crosses borders, which windows without links lose, in [0, 1] where spikes
            rise with currents.

    Example:
        >>> WindowErrors(0.1, 0.11, 0.5, 0.48, 0.2, 0.05, 0.49).detached_measured
        0.48
    """

    linked_predicted: float
    linked_measured: float
    detached_predicted: float
    detached_measured: float
    white: float
    walk: float
    lost_credit: float


@dataclass(frozen=True)
class LayerDecomposition:
    """Decomposition of the gradient of one layer; norms are relative to that of the gradient through time.

    Attributes:
        cosine: cosine of the angle between the gradients through time and of rates, in [-1, 1].
        error: norm of their difference.
        covariance: norm of the covariance over time of errors and presynaptic spikes.
        remainder: norm of the rest, of errors that vary together with answers of neurons.
        covariance_cosine: cosine of the angle between the difference and the covariance; nan if one of them is 0.
        residual: norm of what the terms leave unexplained: rounding, unless an operation has no rate rule.
        lags: shares of the covariance by the lag between a current and the spike that answers, from 0; they add up to 1
            over all lags. nan without a covariance, and for parameters of neurons and of normalization.
        windows: errors by number of windows.

    Example:
        >>> from lightning_snn.methods.rate import gradient_decomposition
        >>> readout = gradient_decomposition(network, (x, y)).layers["2"]
        >>> readout.error < 1e-6, list(readout.windows)
        (True, [1, 2, 5, 10])
    """

    cosine: float
    error: float
    covariance: float
    remainder: float
    covariance_cosine: float
    residual: float
    lags: tuple[float, ...]
    windows: dict[int, WindowErrors]

    def curves(self) -> dict[str, list[tuple[float, float, float]]]:
        """Return K, the predicted and the measured error, with and without links, for `figures.window_errors`."""
        return {
            "linked": [(count, each.linked_predicted, each.linked_measured) for count, each in self.windows.items()],
            "detached": [
                (count, each.detached_predicted, each.detached_measured) for count, each in self.windows.items()
            ],
        }


class Recommendation(NamedTuple):
    """Recommended number of windows.

    Attributes:
        windows: the number K.
        error: its relative error, measured if it was, predicted otherwise.
        reason: why, in a sentence.

    Example:
        >>> Recommendation(1, 0.1, "one window has a relative error of at most 0.3: 0.10").windows
        1
    """

    windows: int
    error: float
    reason: str


@dataclass(frozen=True)
class GradientDecomposition:
    """Decomposition of the difference between the gradients through time and of rates.

    Attributes:
        time_steps: number of time steps T.
        layers: decomposition by name of each module with trained parameters of its own, in order of registration, and
            that of the whole gradient under ``"all"``.
        linked: recommended number of windows with ``link=True``.
        detached: recommended number of windows with ``link=False``.

    Example:
        >>> from lightning_snn.methods.rate import gradient_decomposition
        >>> found = gradient_decomposition(network, (x, y), windows=[5])
        >>> print(str(found).splitlines()[0])
        layer  cosine  error  covariance  remainder  residual  lags 0 to 5
    """

    time_steps: int
    layers: dict[str, LayerDecomposition]
    linked: Recommendation
    detached: Recommendation

    def __str__(self) -> str:
        lags = f"lags 0 to {len(self.layers['all'].lags) - 1}"
        width = max(len("layer"), *map(len, self.layers))
        lines = [f"{'layer':<{width}}  cosine  error  covariance  remainder  residual  {lags}"]
        for name, each in self.layers.items():
            shares = " ".join(_number(share) for share in each.lags)
            lines.append(
                f"{name:<{width}}  {each.cosine:>6.3f}  {each.error:>5.3f}  {each.covariance:>10.3f}  "
                f"{each.remainder:>9.3f}  {each.residual:>8.0e}  {shares}"
            )
        lines += ["", "relative error of K windows: predicted / measured"]
        for name, each in self.layers.items():
            if each.error < 1e-6:  # the same gradient, such as that of the readout
                continue
            lines.append(
                f"{name:<{width}}  {'K':>3}  {'linked':>13}  {'detached':>13}  {'white':>5}  {'walk':>5}  lost credit"
            )
            for count, errors in each.windows.items():
                linked = f"{errors.linked_predicted:.3f} / {_number(errors.linked_measured, 3)}"
                detached = f"{errors.detached_predicted:.3f} / {_number(errors.detached_measured, 3)}"
                lines.append(
                    f"{'':<{width}}  {count:>3}  {linked:>13}  {detached:>13}  {errors.white:>5.3f}  "
                    f"{errors.walk:>5.3f}  {errors.lost_credit:>11.3f}"
                )
        lines += ["", f"link=True:  window={self.linked.windows}: {self.linked.reason}"]
        lines += [f"link=False: window={self.detached.windows}: {self.detached.reason}"]
        return "\n".join(lines)


def recommend(errors: dict[int, WindowErrors], time_steps: int, link: bool, tolerance: float) -> Recommendation:
    """Return the smallest number of windows within a tolerance, or else that with the smallest error.

    Args:
        errors: errors of the whole gradient by number of windows, with that of one window.
        time_steps: number of time steps T.
        link: whether windows are linked.
        tolerance: largest relative error.
    """
    found = {}
    for count, each in sorted(errors.items()):
        kind = "linked" if link else "detached"
        measured = getattr(each, f"{kind}_measured")
        found[count] = getattr(each, f"{kind}_predicted") if math.isnan(measured) else measured
    one, most = found[1], max(found)
    if math.isnan(one):
        return Recommendation(1, one, "the gradient through time is 0")
    chosen = next((count for count, error in found.items() if error <= tolerance), None)
    within = chosen is not None
    if chosen is None:
        chosen = min(found, key=lambda count: found[count])
    error, lost = found[chosen], errors[chosen].lost_credit
    limit = f"a relative error of at most {tolerance:g}"
    if within and chosen == 1:
        reason = f"one window has {limit}: {error:.2f}"
    elif within and link and chosen == time_steps:
        reason = f"only one window per step has {limit}; SurrogateGradient is the same gradient in one pass"
    elif within:
        reason = f"the fewest windows with {limit}: {error:.2f}, and {one:.2f} with one window"
    elif chosen == 1:
        lost = errors[most].lost_credit
        reason = (
            f"none has {limit}, and more windows add to the {one:.2f} of one: K = {most} loses {lost:.2f} of the credit"
        )
    else:
        reason = f"none has {limit}; {error:.2f}, with {lost:.2f} of the credit lost at borders, and {one:.2f} with one"
    return Recommendation(chosen, error, reason)


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
