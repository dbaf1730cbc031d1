"""The mathematics of Expectation Propagation in spiking networks: factors, mixing blocks and discrete weights."""

from lightning_snn.functional.ep.factors import (
    ACTIVATIONS,
    Activation,
    Message,
    bounded,
    log_odds_of_spike,
    spike_message,
    spike_probability,
    value_message,
)
from lightning_snn.functional.ep.joint import joint_cavity, joint_posterior
from lightning_snn.functional.ep.levels import level_moments, level_sites, site_sums
from lightning_snn.functional.ep.mixing import (
    Potential,
    conjugate_gradients,
    forward_moments,
    gaussian_sites,
    input_message,
    site_precision,
)
from lightning_snn.functional.ep.parts import epistemic_spike_variance

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Message",
    "Potential",
    "bounded",
    "conjugate_gradients",
    "epistemic_spike_variance",
    "forward_moments",
    "gaussian_sites",
    "input_message",
    "joint_cavity",
    "joint_posterior",
    "level_moments",
    "level_sites",
    "log_odds_of_spike",
    "site_precision",
    "site_sums",
    "spike_message",
    "spike_probability",
    "value_message",
]
