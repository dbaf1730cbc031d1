"""Rate-based backpropagation: `rate_run` in place of `run`, and a rate rule for each module type."""

from lightning_snn.methods.rate import neurons, norm, stateless  # these register their rules
from lightning_snn.methods.rate.alignment import Alignment, gradient_alignment
from lightning_snn.methods.rate.captured import decomposition_refusals
from lightning_snn.methods.rate.decomposed import (
    GradientDecomposition,
    LayerDecomposition,
    Recommendation,
    WindowErrors,
)
from lightning_snn.methods.rate.decomposition import gradient_decomposition
from lightning_snn.methods.rate.drift import DriftMonitor, rate_drift
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
    "DriftMonitor",
    "GradientDecomposition",
    "LayerDecomposition",
    "Plan",
    "RateBackprop",
    "RateRule",
    "Recommendation",
    "Tape",
    "WindowErrors",
    "WindowMean",
    "decomposition_refusals",
    "gradient_alignment",
    "gradient_decomposition",
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
