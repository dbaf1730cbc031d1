"""Noises and values of lambda for which tests of gradient estimators run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

NOISES, LAMBDAS = ("gaussian", "logistic"), (1.0, 0.5, 0.0, -1.0)
every_noise = pytest.mark.parametrize("noise", NOISES)
every_lambda = pytest.mark.parametrize("lam", LAMBDAS)


def probability(t: Tensor, noise: str) -> Tensor:
    """Return the probability of a spike at the standardized pre-activation `t`."""
    return 0.5 * torch.erfc(-t / 2**0.5) if noise == "gaussian" else torch.sigmoid(t)
