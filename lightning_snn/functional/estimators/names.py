"""Gradient estimators by name, for the command line and for methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from lightning_snn.functional.estimators.base import Estimator, Noise
from lightning_snn.functional.estimators.gumbel import AnalyticalGumbelRao, GumbelRao, GumbelStraightThrough
from lightning_snn.functional.estimators.iwst import IWST

EstimatorName = Literal["straight_through", "reinmax", "darn_mean", "agr", "gumbel_rao", "gumbel_straight_through"]


def estimator_named(estimator: float | EstimatorName | Estimator, noise: Noise = "gaussian") -> Estimator:
    """Return IW-ST of a given lambda, an estimator of a given name with its defaults, or a given `Estimator`.

    Args:
        estimator: lambda in [-1, 1], or "straight_through" (lambda = 1), "reinmax" (0), "darn_mean" (-1), "agr",
            "gumbel_rao", "gumbel_straight_through".
        noise: "gaussian" or "logistic"; ignored if `estimator` is an `Estimator`.

    Raises:
        ValueError: if `estimator` is none of these.

    Example:
        >>> estimator_named("reinmax", noise="logistic")
        IWST(lam=0.0, noise='logistic')
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
