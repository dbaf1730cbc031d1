"""Estimators by name, as the command line and methods take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from lightning_snn.functional.estimators.base import Estimator, Noise
from lightning_snn.functional.estimators.gumbel import AnalyticalGumbelRao, GumbelRao, GumbelStraightThrough
from lightning_snn.functional.estimators.iwst import IWST

EstimatorName = Literal["straight_through", "reinmax", "darn_mean", "agr", "gumbel_rao", "gumbel_straight_through"]


def estimator_named(estimator: float | EstimatorName | Estimator, noise: Noise = "gaussian") -> Estimator:
    """IW-ST of that lambda, or the estimator of that name with its defaults; an `Estimator` passes through.

    Args:
        estimator: lambda in [-1, 1], or "straight_through" (lambda = 1), "reinmax" (0), "darn_mean" (-1), "agr",
            "gumbel_rao", "gumbel_straight_through".
        noise: the noise of an estimator that is not given as one.

    Raises:
        ValueError: if `estimator` is none of these.
    """
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, str):
        named: dict[str, Callable[[], Estimator]] = {
            "straight_through": lambda: IWST(1.0, noise),
            "reinmax": lambda: IWST(0.0, noise),
            "darn_mean": lambda: IWST(-1.0, noise),
            "agr": lambda: AnalyticalGumbelRao(noise=noise),
            "gumbel_rao": lambda: GumbelRao(noise=noise),
            "gumbel_straight_through": lambda: GumbelStraightThrough(noise=noise),
        }
        if estimator in named:
            return named[estimator]()
    elif isinstance(estimator, (int, float)) and not isinstance(estimator, bool) and -1 <= estimator <= 1:
        return IWST(float(estimator), noise)
    raise ValueError(
        "Expected argument `estimator` to be a number from -1 to 1, an Estimator or one of "
        f"{', '.join(map(repr, get_args(EstimatorName)))}, but got {estimator!r}"
    )
