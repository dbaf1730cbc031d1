"""Rate-based backpropagation: `rate_run` in place of `run`, and a rate rule for each module type."""

from lightning_snn.methods.rate import neurons, norm, stateless  # they register their rules
from lightning_snn.methods.rate.alignment import Alignment, gradient_alignment
from lightning_snn.methods.rate.drift import DriftWatch, rate_drift
from lightning_snn.methods.rate.method import RateBackprop
from lightning_snn.methods.rate.rules import (
    Commutes,
    Plan,
    RateRule,
    WindowMean,
    rate_refusals,
    register_rate_rule,
)
from lightning_snn.methods.rate.tape import Tape, rate_run
from lightning_snn.methods.rate.third_party import module_alignment, rate_backward
from lightning_snn.nn.phase import rate_phase

__all__ = [
    "Alignment",
    "Commutes",
    "DriftWatch",
    "Plan",
    "RateBackprop",
    "RateRule",
    "Tape",
    "WindowMean",
    "gradient_alignment",
    "module_alignment",
    "neurons",
    "norm",
    "rate_backward",
    "rate_drift",
    "rate_phase",
    "rate_refusals",
    "rate_run",
    "register_rate_rule",
    "stateless",
]
