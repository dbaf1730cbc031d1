"""Fluctuation-driven neurons: weights of such a size that the membrane's fluctuations, not its mean, make them spike.

After Rossbroich, Gygax & Zenke 2022, arXiv 2206.10226, who choose the variance of the weights from the statistics of
the input and the time constants of the neurons. Here the membrane is measured, which knows both.
"""

from __future__ import annotations

from lightning_snn.checks import check_positive


def fluctuation_factor(mean: float, deviation: float, xi: float, threshold: float = 1.0) -> float:
    r"""The factor of a neuron's input for which its threshold is `xi` standard deviations above its mean membrane.

    .. math:: \frac{\theta - a \mu}{a \sigma} = \xi \quad\Rightarrow\quad a = \frac{\theta}{\xi \sigma + \mu}

    Args:
        mean: mu of the free membrane, that of a neuron which never spikes and so is linear in its input.
        deviation: sigma of the free membrane, larger than 0.
        xi: distance of the threshold from the mean in standard deviations, larger than 0.
        threshold: theta, larger than 0, in the unit of the membrane.

    Returns:
        a, larger than 0.

    Raises:
        ValueError: if an argument is outside its range, or no factor does: the mean is `xi` standard deviations below
            0 or more.
    """
    check_positive("deviation", deviation)
    check_positive("xi", xi)
    check_positive("threshold", threshold)
    reach = xi * deviation + mean
    if not reach > 0:
        raise ValueError(f"Expected argument `mean` to be larger than {-xi * deviation:g}, but got {mean:g}")
    return threshold / reach
