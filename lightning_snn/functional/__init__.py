"""The mathematics: pure functions on tensors, with neither modules nor Lightning."""

from lightning_snn.functional.iwst import iwst, iwst_weight
from lightning_snn.functional.lif import Dynamics, leaky_integrate, lif, lif_step
from lightning_snn.functional.noisy_lif import noisy_lif
from lightning_snn.functional.readout import readout
from lightning_snn.functional.surrogate import (
    ArcTangent,
    FastSigmoid,
    Sigmoid,
    Smooth,
    Surrogate,
    Triangular,
)
from lightning_snn.functional.variational import conv2d_moments, gaussian_kl, linear_moments, sample

__all__ = [
    "ArcTangent",
    "Dynamics",
    "FastSigmoid",
    "Sigmoid",
    "Smooth",
    "Surrogate",
    "Triangular",
    "conv2d_moments",
    "gaussian_kl",
    "iwst",
    "iwst_weight",
    "leaky_integrate",
    "lif",
    "lif_step",
    "linear_moments",
    "noisy_lif",
    "readout",
    "sample",
]
