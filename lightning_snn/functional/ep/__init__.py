"""Mathematics of expectation propagation in spiking networks: factors, mixing blocks and quantized weights."""

from lightning_snn.functional.ep.epistemic import epistemic_spike_variance
from lightning_snn.functional.ep.factors import (
    ACTIVATIONS,
    Activation,
    Message,
    bounded,
    log_odds_of_spike,
    soft_spike_message,
    spike_message,
    spike_probability,
    value_message,
)
from lightning_snn.functional.ep.mixing import (
    Potential,
    conjugate_gradients,
    forward_moments,
    gaussian_sites,
    input_message,
    marginal_curvature,
    own_message,
    site_precision,
    without_own,
)
from lightning_snn.functional.ep.quantized import quantized_moments, quantized_sites, site_sums
from lightning_snn.functional.ep.winner import (
    OUTPUT_ACTIVATIONS,
    WINNER_NOISE,
    OutputActivation,
    winner_log_probabilities,
    winner_message,
)

__all__ = [
    "ACTIVATIONS",
    "OUTPUT_ACTIVATIONS",
    "WINNER_NOISE",
    "Activation",
    "Message",
    "OutputActivation",
    "Potential",
    "bounded",
    "conjugate_gradients",
    "epistemic_spike_variance",
    "forward_moments",
    "gaussian_sites",
    "input_message",
    "log_odds_of_spike",
    "marginal_curvature",
    "own_message",
    "quantized_moments",
    "quantized_sites",
    "site_precision",
    "site_sums",
    "soft_spike_message",
    "spike_message",
    "spike_probability",
    "value_message",
    "winner_log_probabilities",
    "winner_message",
    "without_own",
]
