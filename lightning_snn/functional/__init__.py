"""Mathematics of the library: pure functions on tensors, without modules or Lightning."""

from lightning_snn.functional.bias_loss import hinge_bias, snr_bias, synapse_bias
from lightning_snn.functional.dynamics import Dynamics, PendingState, lif_step, reset_membrane
from lightning_snn.functional.eligibility import lif_rate
from lightning_snn.functional.entropy import expected_entropy, mutual_information, predictive_entropy
from lightning_snn.functional.enumeration import GradientStatistics, gradient_statistics
from lightning_snn.functional.estimators import (
    IWST,
    AnalyticalGumbelRao,
    Estimator,
    GumbelRao,
    GumbelStraightThrough,
    best_lambda,
    chi_squared,
    estimator_named,
    iwst,
    iwst_weight,
    noisy_spikes,
    variance_factor,
)
from lightning_snn.functional.lif import leaky_integrate, lif
from lightning_snn.functional.noisy_lif import noisy_lif
from lightning_snn.functional.readout import readout
from lightning_snn.functional.spike import spike
from lightning_snn.functional.step_eligibility import step_rate
from lightning_snn.functional.surrogate import (
    ArcTangent,
    FastSigmoid,
    Sigmoid,
    Smooth,
    Surrogate,
    Triangular,
    propagate_nan,
)
from lightning_snn.functional.ttfs import (
    TimeConstraints,
    relu_from_two_phase,
    remaining_time,
    spike_times,
    through_time,
    two_phase_from_relu,
)
from lightning_snn.functional.variational import gaussian_kl, linear_moments, sample

__all__ = [
    "IWST",
    "AnalyticalGumbelRao",
    "ArcTangent",
    "Dynamics",
    "Estimator",
    "FastSigmoid",
    "GradientStatistics",
    "GumbelRao",
    "GumbelStraightThrough",
    "PendingState",
    "Sigmoid",
    "Smooth",
    "Surrogate",
    "TimeConstraints",
    "Triangular",
    "best_lambda",
    "chi_squared",
    "estimator_named",
    "expected_entropy",
    "gaussian_kl",
    "gradient_statistics",
    "hinge_bias",
    "iwst",
    "iwst_weight",
    "leaky_integrate",
    "lif",
    "lif_rate",
    "lif_step",
    "linear_moments",
    "mutual_information",
    "noisy_lif",
    "noisy_spikes",
    "predictive_entropy",
    "propagate_nan",
    "readout",
    "relu_from_two_phase",
    "remaining_time",
    "reset_membrane",
    "sample",
    "snr_bias",
    "spike",
    "spike_times",
    "step_rate",
    "synapse_bias",
    "through_time",
    "two_phase_from_relu",
    "variance_factor",
]
