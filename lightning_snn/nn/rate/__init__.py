"""Rate-based backpropagation: `rate_run` in place of `run`, and a rule for what each module is among rates."""

from lightning_snn.nn.phase import rate_phase
from lightning_snn.nn.rate import neurons, norm, stateless
from lightning_snn.nn.rate.alignment import Alignment, gradient_alignment
from lightning_snn.nn.rate.drift import DriftWatch, rate_drift
from lightning_snn.nn.rate.foreign import module_alignment, rate_backward
from lightning_snn.nn.rate.rules import (
    Commutes,
    Plan,
    RateRule,
    WindowMean,
    rate_rule,
    refused_modules,
    register_rate_rule,
)
from lightning_snn.nn.rate.tape import Tape, rate_run

__all__ = [
    "Alignment",
    "Commutes",
    "DriftWatch",
    "Plan",
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
    "rate_rule",
    "rate_run",
    "refused_modules",
    "register_rate_rule",
    "stateless",
]
