"""Normal tails and quadrature nodes: against scipy and against moments of the normal distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import erfcx, log_ndtr, ndtr

from lightning_snn.functional.gaussian import hermite_nodes, mills_ratio, normal_cdf, normal_log_odds

DTYPES = [(torch.float32, 1e-6), (torch.float64, 1e-14)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_mills_ratio_is_exact_from_0_to_a_million(dtype, tolerance):
    z = torch.cat([torch.linspace(0, 40, 4001), torch.logspace(0, 6, 200)]).to(dtype)
    expected = erfcx(z.double().numpy() / math.sqrt(2)) * math.sqrt(math.pi / 2)
    np.testing.assert_allclose(mills_ratio(z).double().numpy(), expected, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance", "lowest"), [(torch.float32, 4e-5, -12), (torch.float64, 1e-12, -35)])
def test_normal_cdf_keeps_its_lower_tail(dtype, tolerance, lowest):
    z = torch.linspace(lowest, 10, 1001, dtype=dtype)
    np.testing.assert_allclose(normal_cdf(z).double().numpy(), ndtr(z.double().numpy()), rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_normal_log_odds_are_exact_in_both_tails(dtype, tolerance):
    z = torch.cat([torch.linspace(0.1, 40, 4000), torch.logspace(0, 3, 50)]).to(dtype)
    z = torch.cat([-z, z])
    exact = z.double().numpy()
    np.testing.assert_allclose(
        normal_log_odds(z).double().numpy(), log_ndtr(exact) - log_ndtr(-exact), rtol=20 * tolerance
    )


def test_normal_log_odds_are_zero_at_zero():
    assert normal_log_odds(torch.zeros(1)).abs() < 1e-6


@pytest.mark.parametrize("nodes", [2, 8, 32])
def test_hermite_nodes_give_moments_of_the_normal_distribution(nodes):
    table = hermite_nodes(nodes)
    assert [node for node, _ in table] == sorted(node for node, _ in table)
    for power in range(0, min(2 * nodes, 12), 2):
        moment = math.prod(range(1, power, 2))
        assert sum(weight * node**power for node, weight in table) == pytest.approx(moment, rel=1e-10)


def test_hermite_nodes_are_not_exact_beyond_their_degree():
    assert sum(weight * node**4 for node, weight in hermite_nodes(2)) != pytest.approx(3, rel=0.1)
