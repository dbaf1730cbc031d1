r"""Auxiliary losses that keep the bias of IW-ST small (after Walker et al. 2025; the forms are our reconstruction).

The bias of a unit j through a unit k of the next layer is proportional to ``(m_kj^2 / v_k) F''(t_k)``, and for Gaussian
noise ``F'' = -t F'``. So it is small where units stay near their linear range, ``t^2 = O(1)``, which is also where
their gradient does not vanish, and where no synapse dominates the noise, ``m_kj^2 << v_k``.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

BiasForm = Literal["snr", "hinge", "synapse"]
BIAS_FORMS = ("snr", "hinge", "synapse")


def snr_bias(t: Tensor) -> Tensor:
    """``mean t^2``: the squared signal-to-noise ratio of standardized pre-activations of any shape; a scalar."""
    return t.square().mean()


def hinge_bias(t: Tensor, tolerated: float = 2.0) -> Tensor:
    """``mean relu(t^2 - c)^2``: as `snr_bias`, but free for units whose ``t^2`` is at most `tolerated`; a scalar."""
    return (t.square() - tolerated).relu().square().mean()


def synapse_bias(weight: Tensor, variance: Tensor) -> Tensor:
    """``mean_k max_j m_kj^2 / v_k``: how much the largest synapse of each unit stands out of its noise; a scalar.

    Args:
        weight: posterior means `[M, ...]`, the fan-in in the other dimensions.
        variance: variances of pre-activations, `[rows, M]` or `[rows, M, ...]`; v_k is their mean over all but M.
    """
    strongest = weight.flatten(1).square().amax(1)
    others = [dimension for dimension in range(variance.dim()) if dimension != 1]
    return (strongest / (variance.mean(others) + 1e-8)).mean()
