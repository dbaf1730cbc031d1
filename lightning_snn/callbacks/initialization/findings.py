"""What is found in a network before training: values, verdicts, and what to do about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_snn.callbacks.initialization.thresholds import Band, Verdict

WEAKER = "scale its incoming weights down, or raise its threshold"
STRONGER = "scale its incoming weights up, or lower its threshold"
_VANISHING = "larger weights, a wider surrogate derivative, skip connections, normalization, or fewer layers"
_EXPLODING = "smaller weights, a narrower or lower surrogate derivative, normalization, or clipped gradients"
_HE = "weights of standard deviation sqrt(2 / fan-in), or normalization"
_SLOPES = "slopes of 1: `FirstSpike` after a Linear, `nn.from_relu`, or `copy_relu` from a ReLU network"

# by quantity, and by whether the value is too small or too large: the reason, and the remedy
_ADVICE = {
    ("firing_rate", False): ("it is silent or nearly so", STRONGER),
    ("firing_rate", True): ("it spikes all the time", WEAKER),
    ("dead_share", True): ("many of its neurons never spike, and learn slowly or not at all", STRONGER),
    ("saturated_share", True): ("many of its neurons spike in nearly every step, and tell nothing", WEAKER),
    ("membrane_sd", False): ("its membranes hardly move beside the threshold", STRONGER),
    ("membrane_sd", True): ("its membranes are far from the threshold, where surrogate derivatives vanish", WEAKER),
    ("spike_gain", False): ("gradients vanish in it", _VANISHING),
    ("spike_gain", True): ("gradients explode in it", _EXPLODING),
    ("spike_derivative", False): ("its spikes pass no gradient on", "a surrogate derivative of the spike"),
    ("depth_gain", False): ("gradients vanish over depth", _VANISHING),
    ("depth_gain", True): ("gradients explode over depth", _EXPLODING),
    ("gradient_ratio", False): ("the first weights learn far more slowly than the last", _VANISHING),
    ("gradient_ratio", True): ("the first weights learn far faster than the last", _EXPLODING),
    ("spectral_radius", False): ("its Jacobian shrinks gradients", _HE),
    ("spectral_radius", True): ("its Jacobian stretches gradients", _HE),
    ("active_fraction", False): ("few of its neurons are active", "larger weights or biases"),
    ("active_fraction", True): ("nearly all of its neurons are active: it is almost linear", "smaller biases"),
    ("silent_samples", True): ("no neuron of it is active for some samples", "larger weights or biases"),
    ("smallest_slope", False): ("neurons with slopes near 0 explode, and below 0 they never spike", _SLOPES),
}
_NO_NUMBER = (
    "the values are not finite, or no gradient comes at all",
    "finite inputs, thresholds above 0, and layers that are not silent",
)
_OVERFLOW = "it overflows", "first see to the layers above"
_NO_LAST = "the gradient of the last weights is 0, as behind a silent layer", "first see to the layers above"


class Finding(NamedTuple):
    """One measured value.

    Attributes:
        quantity: what was measured.
        layer: where; "all" is the whole network.
        value: the value.
        verdict: "ok", "warn" or "fail"; None where a value is for information only.
        reason: what a value that is not ok means.
        remedy: what helps against it.
    """

    quantity: str
    layer: str
    value: float
    verdict: Verdict | None
    reason: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.quantity} of {self.layer} is {self.value:.4g}"


def judged(quantity: str, layer: str, value: float, band: Band) -> Finding:
    """A finding with the verdict of a band."""
    return advised(quantity, layer, value, band.verdict(value), value > band.passes[1])


def advised(quantity: str, layer: str, value: float, verdict: Verdict, large: bool) -> Finding:
    """A finding with a verdict, and with reason and remedy if it is not ok; `large`: it is so by being too large."""
    if verdict == "ok":
        return Finding(quantity, layer, value, verdict)
    if value != value:
        advice = _NO_NUMBER
    elif value == math.inf:
        advice = _NO_LAST if quantity == "gradient_ratio" else _OVERFLOW
    else:
        advice = _ADVICE[quantity, large]
    return Finding(quantity, layer, value, verdict, *advice)


def overall(findings: Sequence[Finding]) -> Verdict:
    """The worst verdict."""
    verdicts = {each.verdict for each in findings}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "ok"


def findings_table(findings: Sequence[Finding]) -> str:
    """Findings as lines of text: a table, the verdict of the whole, and what to do about what is not ok."""
    rows = [("quantity", "layer", "value", "verdict")]
    rows += [(each.quantity, each.layer, f"{each.value:.4g}", each.verdict or "") for each in findings]
    found = [f"The network as a whole: {overall(findings)}"]
    for verdict in ("fail", "warn"):
        chosen = [each for each in findings if each.verdict == verdict]
        found += [f"{verdict}: {each}: {each.reason}. Remedy: {each.remedy}" for each in chosen]
    return "\n".join([*aligned(rows), *found])


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, with columns one below the other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
