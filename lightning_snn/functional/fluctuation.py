"""Fluctuation-driven initialization: weights whose membrane fluctuations, not their mean, make neurons spike.

After Rossbroich, Gygax & Zenke 2022, arXiv 2206.10226, who compute the variance of the weights from the statistics of
the input and the time constants of the neurons. Here the membrane potential is measured, which depends on both.
"""

from __future__ import annotations

from lightning_snn.checks import check_positive


def fluctuation_factor(mean: float, std: float, xi: float, threshold: float = 1.0) -> float:
    r"""Return the input scale that puts the threshold `xi` standard deviations above the mean membrane potential.

    .. math:: \frac{\theta - a \mu}{a \sigma} = \xi \quad\Rightarrow\quad a = \frac{\theta}{\xi \sigma + \mu}

    Args:
        mean: mu, mean of the free membrane potential, that of a neuron that never spikes. It is linear in the input.
        std: sigma, standard deviation of the free membrane potential, larger than 0.
        xi: distance of the threshold from the mean in standard deviations, larger than 0.
        threshold: theta, larger than 0, in the unit of the membrane potential.

    Returns:
        a, larger than 0.

    Raises:
        ValueError: if an argument is outside its range, or if no factor exists because the mean is at least `xi`
            standard deviations below 0.

    Example:
        >>> fluctuation_factor(mean=0.5, std=0.25, xi=2.0)
        1.0
    """
    check_positive("std", std)
    check_positive("xi", xi)
    check_positive("threshold", threshold)
    denominator = xi * std + mean
    if not denominator > 0:
        raise ValueError(f"Expected argument `mean` to be larger than {-xi * std:g}, but got {mean:g}")
    return threshold / denominator
