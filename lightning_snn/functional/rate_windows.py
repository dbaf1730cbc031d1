r"""Shares of the gradient through time that windows of rates keep and lose, by the number of windows.

The gradient of the rates of K windows of T / K steps leaves out how errors and presynaptic spikes vary together within
a window. Of a variation over all T steps, these shares are within windows:

.. math::
    \text{independent steps:}\ \frac{T - K}{T - 1}, \qquad
    \text{random walk:}\ \frac{T^2 / K - K}{T^2 - 1} \approx \frac{1}{K}

Windows that are not linked also cut the state of neurons at their borders. A spike answers currents of earlier steps
with a weight that falls with the lag, for a leaky membrane as :math:`\beta^\tau`, and pairs of steps in different
windows lose their credit. On the way to a layer below, the lags of all neurons above add up, so the weights convolve.

Derived in this library; the method of one window is that of Yu et al. 2024, arXiv 2410.11488.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_snn.checks import check_integer


def white_share(steps: int, windows: int) -> float:
    """Return the share within windows of the covariance of sequences whose steps are independent.

    Args:
        steps: number of time steps T, at least 1.
        windows: number of windows K, a divisor of T.

    Returns:
        Share in [0, 1]: 1 for one window, 0 for one window per step.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [round(white_share(20, windows), 3) for windows in (1, 2, 10, 20)]
        [1.0, 0.947, 0.526, 0.0]
    """
    _check_windows(steps, windows)
    return (steps - windows) / (steps - 1) if steps > 1 else 0.0


def walk_share(steps: int, windows: int) -> float:
    """Return the share within windows of the covariance of random walks, about 1 / K.

    Args:
        steps: number of time steps T, at least 1.
        windows: number of windows K, a divisor of T.

    Returns:
        Share in [0, 1]: 1 for one window, 0 for one window per step.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [round(walk_share(20, windows), 3) for windows in (1, 2, 10, 20)]
        [1.0, 0.496, 0.075, 0.0]
    """
    _check_windows(steps, windows)
    return (steps**2 / windows - windows) / (steps**2 - 1) if steps > 1 else 0.0


def lost_credit(weights: Sequence[float], steps: int, windows: int) -> float:
    r"""Return the share of the credit that crosses a border of windows, which windows without links lose.

    .. math::
        1 - \frac{\sum_\tau w_\tau\, K \max(T / K - \tau, 0)}{\sum_\tau w_\tau\, (T - \tau)}

    Args:
        weights: weight w of the answer of a spike to a current of each earlier step, by lag from 0; zero for lags
            beyond the last one. For one layer of neurons with the decay beta, ``beta ** lag``.
        steps: number of time steps T, at least 1.
        windows: number of windows K, a divisor of T.

    Returns:
        Share of the weights of all pairs of steps; in [0, 1] if no weight is negative.

    Raises:
        ValueError: if an argument is out of range, or the weights of all pairs add up to 0.

    Example:
        >>> [round(lost_credit([beta**lag for lag in range(20)], 20, 5), 3) for beta in (0.2, 0.5, 0.8)]
        [0.051, 0.194, 0.489]
    """
    _check_windows(steps, windows)
    length = steps // windows
    pairs = [(weight, lag) for lag, weight in enumerate(weights[:steps])]
    whole = sum(weight * (steps - lag) for weight, lag in pairs)
    if not whole:
        raise ValueError("Expected argument `weights` to have a sum over pairs of steps that is not 0, but it is 0")
    return 1 - sum(weight * windows * max(length - lag, 0) for weight, lag in pairs) / whole


def joined_weights(layers: Iterable[Sequence[float]], steps: int) -> list[float]:
    """Return the weights by lag through several layers of neurons, one after the other: their convolution.

    Args:
        layers: the weights of each layer by lag from 0.
        steps: number of lags to return, the number of time steps T.

    Returns:
        Weights of the lags 0 to T - 1; of no layers, 1 at lag 0.

    Example:
        >>> joined_weights([(1.0, 0.5, 0.25), (1.0, 0.5, 0.25)], 3)
        [1.0, 1.0, 0.75]
    """
    joined = [1.0] + [0.0] * (steps - 1)
    for weights in layers:
        joined = [
            sum(joined[lag - late] * weight for late, weight in enumerate(weights[: lag + 1])) for lag in range(steps)
        ]
    return joined


def _check_windows(steps: int, windows: int) -> None:
    check_integer("steps", steps)
    check_integer("windows", windows)
    if steps % windows:
        raise ValueError(f"Expected argument `windows` to divide the number of time steps {steps}, but got {windows}")
