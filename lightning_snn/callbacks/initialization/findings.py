"""Findings about a network before training: values, verdicts, reasons, and remedies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_snn.callbacks.initialization.thresholds import Band, Verdict

WEAKER = "scale down the weights before the layer, or raise its threshold"
STRONGER = "scale up the weights before the layer, or lower its threshold"
_VANISHING = "use larger weights, a wider surrogate derivative, skip connections, normalization, or fewer layers"
_EXPLODING = "use smaller weights, a narrower or lower surrogate derivative, normalization, or gradient clipping"
_HE = "use weights of standard deviation sqrt(2 / fan-in), or normalization"
_SLOPES = "make slopes 1: use `FirstSpike` after a Linear, `nn.from_relu`, or `copy_relu` from a ReLU network"
_ACTIVE = "use larger weights or biases"

# by quantity, and by whether the value is too large: the reason, and the remedy
_ADVICE = {
    ("firing_rate", False): ("the layer is silent or nearly silent", STRONGER),
    ("firing_rate", True): ("the layer spikes all the time", WEAKER),
    ("dead_share", True): ("many neurons never spike, so they learn slowly or not at all", STRONGER),
    ("saturated_share", True): ("many neurons spike in nearly every time step and carry no information", WEAKER),
    ("membrane_sd", False): ("the membrane potentials hardly vary compared with the threshold", STRONGER),
    ("membrane_sd", True): ("many membrane potentials are far from the threshold, so their gradients vanish", WEAKER),
    ("spike_gain", False): ("gradients vanish in this layer", _VANISHING),
    ("spike_gain", True): ("gradients explode in this layer", _EXPLODING),
    ("spike_derivative", False): ("no gradient passes through its spikes", "use a surrogate derivative for spikes"),
    ("depth_gain", False): ("gradients vanish over depth", _VANISHING),
    ("depth_gain", True): ("gradients explode over depth", _EXPLODING),
    ("gradient_ratio", False): ("the first weights learn far more slowly than the last", _VANISHING),
    ("gradient_ratio", True): ("the first weights learn far faster than the last", _EXPLODING),
    ("spectral_radius", False): ("the Jacobian of this layer shrinks gradients", _HE),
    ("spectral_radius", True): ("the Jacobian of this layer amplifies gradients", _HE),
    ("active_fraction", False): ("few neurons are active", _ACTIVE),
    ("active_fraction", True): ("nearly all neurons are active, so the layer is almost linear", "use smaller biases"),
    ("silent_samples", True): ("no neuron of the layer is active for some samples", _ACTIVE),
    ("smallest_slope", False): (
        "gradients explode for slopes near 0, and neurons with negative slopes never spike",
        _SLOPES,
    ),
}
# too little activity or gradient: surrogate derivatives reach silent layers, so they may learn all the same
_MAY_RECOVER = {
    ("firing_rate", False),
    ("dead_share", True),
    ("membrane_sd", False),
    ("spike_gain", False),
    ("depth_gain", False),
    ("gradient_ratio", False),
    ("gradient_ratio", True),
}
_NOT_A_NUMBER = (
    "the values are not finite, or there is no gradient",
    "check that inputs are finite, thresholds are positive, and layers are not silent",
)
_OVERFLOW = "the value overflows"
_NO_LAST_GRADIENT = "the gradient of the last weights is 0, for example behind a silent layer"
_FIX_OTHERS_FIRST = "fix the layers listed above first"


class Finding(NamedTuple):
    """One measured value with a verdict.

    Attributes:
        quantity: name of the measured quantity.
        layer: name of the layer; "all" is the whole network.
        value: measured value.
        verdict: "ok", "warn", or "fail"; None for a value without a verdict.
        reason: meaning of a value that is not ok.
        remedy: advice for a value that is not ok.
        may_recover: whether a network with such a value may learn all the same, as with silent layers.
    """

    quantity: str
    layer: str
    value: float
    verdict: Verdict | None
    reason: str = ""
    remedy: str = ""
    may_recover: bool = False

    def __str__(self) -> str:
        return f"{self.quantity} of {self.layer} is {self.value:.4g}"


def judge_by_band(quantity: str, layer: str, value: float, band: Band) -> Finding:
    """Return a finding with the verdict of a band."""
    return with_advice(quantity, layer, value, band.verdict(value), value > band.passes[1])


def with_advice(quantity: str, layer: str, value: float, verdict: Verdict, too_large: bool) -> Finding:
    """Return a finding with a verdict and, if it is not ok, the reason and remedy for a too large or small value."""
    if verdict == "ok":
        return Finding(quantity, layer, value, verdict)
    if value != value:
        advice = _NOT_A_NUMBER
    elif value == math.inf:
        advice = (_NO_LAST_GRADIENT if quantity == "gradient_ratio" else _OVERFLOW, _FIX_OTHERS_FIRST)
    else:
        advice = _ADVICE[quantity, too_large]
    recovers = value == value and (quantity, too_large) in _MAY_RECOVER
    return Finding(quantity, layer, value, verdict, *advice, recovers)


def overall(findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict."""
    verdicts = {each.verdict for each in findings}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "ok"


def findings_table(findings: Sequence[Finding]) -> str:
    """Return findings as text: a table, the overall verdict, and reasons and remedies for all that are not ok."""
    rows = [("quantity", "layer", "value", "verdict")]
    rows += [(each.quantity, each.layer, f"{each.value:.4g}", each.verdict or "") for each in findings]
    lines = [f"Overall verdict: {overall(findings)}"]
    for verdict in ("fail", "warn"):
        chosen = [each for each in findings if each.verdict == verdict]
        lines += [f"{verdict}: {each}: {each.reason}. Remedy: {each.remedy}." for each in chosen]
    return "\n".join([*align_columns(rows), *lines])


def align_columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
