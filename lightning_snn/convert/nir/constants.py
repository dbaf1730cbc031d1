r"""Decays, thresholds and input gains as the constants of NIR's differential equations, and back.

NIR describes neurons in continuous time. All simulators of its paper that can run our networks step them by Euler's
method, at which a LIF node is

.. math:: v_t = (1 - dt / \tau) u_{t-1} + (r\, dt / \tau) x_t, \qquad s_t = H(v_t - v_\text{threshold}),

so a decay beta is :math:`\tau = dt / (1 - \beta)`, and :math:`r = \tau / dt` gives the input the weight 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.nn.stateful import StatefulLayer

# time constants in float32 and their products with dt are off by some roundings
GAIN_TOLERANCE = 1e-6


def full(layer: StatefulLayer, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return a declared value as an array of the shape of a sample: numbers and values per channel are repeated.

    Args:
        layer: the neurons.
        name: of the value.
        shape: of a sample, `[C, ...]`.
        dtype: of the result.
    """
    value = layer.value(name)
    if isinstance(value, torch.Tensor):
        values = value.detach().cpu().numpy()
        if values.ndim:
            values = values.reshape(-1, *(1,) * (len(shape) - 1))
    else:
        values = np.asarray(value)
    return np.ascontiguousarray(np.broadcast_to(values, shape).astype(dtype))


def time_constant(decay: np.ndarray, dt: float) -> np.ndarray:
    """Return time constants in seconds whose Euler step at `dt` decays by `decay`, in the dtype of `decay`.

    ``1 - dt / tau``, computed in that dtype, is `decay` again, to the bit for decays from 0.7 on. Smaller ones are off
    by two roundings at most.

    Args:
        decay: decays in [0, 1), floating point.
        dt: step in seconds.

    Example:
        >>> tau = time_constant(np.array([0.9]), 1e-4)
        >>> tau, decay_of(tau, 1e-4)
        (array([0.001]), array([0.9]))
    """
    return np.asarray(dt / (1 - decay), decay.dtype)


def decay_of(tau: np.ndarray, dt: float) -> np.ndarray:
    """Return the decay per step of an Euler step at `dt`, in the dtype of `tau`."""
    return np.asarray(1 - dt / tau)


def next_float(threshold: np.ndarray, direction: float) -> np.ndarray:
    """Return the next larger (``inf``) or smaller (``-inf``) numbers, in the dtype of `threshold`.

    A potential in that dtype is larger than a threshold exactly where it is at least the next larger number.
    """
    moved: np.ndarray = np.nextafter(threshold, threshold.dtype.type(direction))
    return moved


def checked_decay(tau: np.ndarray, dt: float, name: str) -> np.ndarray:
    """Return the decays of time constants.

    Raises:
        Unconvertible: if a decay is not in [0, 1].
    """
    if not (np.isfinite(tau).all() and (tau > 0).all()):
        raise Unconvertible(f"its {name} holds values that are not finite and larger than 0")
    decay = decay_of(tau, dt)
    # tau = dt, a decay of 0, may be off by a rounding
    decay = np.where((decay < 0) & (decay > -GAIN_TOLERANCE), decay.dtype.type(0), decay)
    if (decay < 0).any():
        raise Unconvertible(f"its {name} of {tau.min():g} s is smaller than dt = {dt:g} s: pass the dt of its maker")
    return decay


def per_channel(values: np.ndarray, name: str) -> float | np.ndarray:
    """Return values of a full shape `[C, ...]` as a number, if all are equal, or as one value per channel `[C]`.

    Raises:
        Unconvertible: if values differ within a channel, or are not finite.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise Unconvertible(f"its {name} holds values that are not finite")
    first = values.reshape(-1)[0]
    if (values == first).all():
        return float(first)
    of_channels = values.reshape(values.shape[0], -1)
    if (of_channels != of_channels[:, :1]).any():
        raise Unconvertible(
            f"its {name} differs within a channel, and neurons have a value per layer or per channel: give all neurons "
            "of a channel the same value"
        )
    return np.ascontiguousarray(of_channels[:, 0])
