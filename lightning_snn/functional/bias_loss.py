r"""Auxiliary losses that keep the bias of IW-ST small (after Walker et al. 2025; the forms are our reconstruction).

The bias of a unit j through a unit k of the next layer is proportional to ``(m_kj^2 / v_k) F''(t_k)``, and for Gaussian
noise ``F'' = -t F'``. The bias is small if units stay near their linear range, ``t^2 = O(1)``, where their gradient
does not vanish either, and if no synapse dominates the noise, ``m_kj^2 << v_k``.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

BiasForm = Literal["snr", "hinge", "synapse"]
BIAS_FORMS = ("snr", "hinge", "synapse")


def snr_bias(t: Tensor) -> Tensor:
    """Return the mean squared signal-to-noise ratio, ``mean t^2``.

    Args:
        t: standardized pre-activations, any shape.

    Returns:
        Scalar, at least 0.

    Example:
        >>> import torch
        >>> snr_bias(torch.tensor([1.0, -3.0]))
        tensor(5.)
    """
    return t.square().mean()


def hinge_bias(t: Tensor, tolerated: float = 2.0) -> Tensor:
    """Return ``mean relu(t^2 - c)^2``, which is 0 for units whose squared signal-to-noise ratio is at most c.

    Args:
        t: standardized pre-activations, any shape.
        tolerated: c, at least 0.

    Returns:
        Scalar, at least 0.

    Example:
        >>> import torch
        >>> hinge_bias(torch.tensor([1.0, -3.0]))
        tensor(24.5000)
    """
    return (t.square() - tolerated).relu().square().mean()


def synapse_bias(weight: Tensor, variance: Tensor) -> Tensor:
    """Return ``mean_k max_j m_kj^2 / v_k``, the mean ratio of the largest squared weight of a unit to its noise.

    Args:
        weight: posterior means m `[M, ...]`, with the fan-in in the other dimensions.
        variance: variances of pre-activations, `[rows, M]` or `[rows, M, ...]`; v_k is their mean over all dimensions
            except M.

    Returns:
        Scalar, at least 0.

    Example:
        >>> import torch
        >>> synapse_bias(torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor(2.5000)
    """
    largest = weight.flatten(1).square().amax(1)
    others = [dimension for dimension in range(variance.dim()) if dimension != 1]
    return (largest / (variance.mean(others) + 1e-8)).mean()
