"""One batch of messages: convergence, invariances, and guards against divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.ep import Potential
from lightning_snn.methods.ep import Natural, batch_update, output_moments
from lightning_snn.methods.ep.batch_update import BatchUpdate
from lightning_snn.methods.ep.neurons import MessageNeuron
from lightning_snn.methods.ep.weights import LevelWeights
from tests.methods.ep.task import Steps, dense, digits, prepared, updated


def moments(natural: Natural) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of Gaussian weights."""
    return natural.precision_mean / natural.precision, natural.precision.rsqrt()


def finite(found: BatchUpdate) -> bool:
    return all(values.isfinite().all() for natural in found.natural for values in natural)


def test_a_single_layer_converges_and_stays_where_it_is():
    x, y = digits(500)
    network = prepared(dense(24, 3))
    means = {n: moments(updated(network, x, y, n, 1.0, 40).natural[0]) for n in (5, 10, 20, 40)}

    def change(few: int, many: int) -> float:
        return ((means[many][0] - means[few][0]).abs() / means[many][1]).max().item()

    assert change(20, 40) < 1e-5
    assert change(5, 10) > 1e-4


@pytest.mark.parametrize("sizes", [(24, 3), (24, 8, 3)])
def test_the_order_of_samples_within_a_batch_does_not_matter(sizes):
    x, y = digits(200)
    order = torch.randperm(200)
    one, other = (updated(prepared(dense(*sizes)), x[chosen], y[chosen]) for chosen in (torch.arange(200), order))
    for natural, again in zip(one.natural, other.natural, strict=True):
        for values, expected in zip(again, natural, strict=True):
            assert (values - expected).abs().max() < 2e-6 * expected.abs().max()
    torch.testing.assert_close(other.output.mean, one.output.mean[order])
    shuffled = updated(prepared(dense(*sizes)), x[order], y)
    assert (shuffled.natural[-1].precision_mean - one.natural[-1].precision_mean).abs().max() > 1e-2


@pytest.mark.parametrize("sizes", [(24, 3), (24, 8, 3)])
def test_batches_only_add_precision_and_none_to_weights_of_inputs_that_are_silent(sizes):
    x, y = digits(200)
    x[:, 5] = 0
    network = prepared(dense(*sizes))
    found = updated(network, x, y)
    for natural, block in zip(found.natural, network.chain.blocks, strict=True):
        assert (natural.precision >= block.layer.precision).all()
    first = network.chain.blocks[0].layer
    assert torch.equal(found.natural[0].precision[:, 5], first.precision[:, 5])
    torch.testing.assert_close(
        found.natural[0].precision_mean[:, 5], first.precision_mean[:, 5], rtol=1e-14, atol=1e-14
    )
    assert (found.natural[0].precision[:, 4] > first.precision[:, 4]).all()


def test_the_partition_into_batches_matters_little():
    x, y = digits(600)
    found = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        batches = torch.randperm(600, generator=generator).split(100)
        steps = Steps(dense(24, 3), iterations=5, damping=1.0)
        for _ in range(4):
            order = torch.randperm(6, generator=generator).tolist()
            steps.take(x, y, [batches[index] for index in order], 600)
        found.append(moments(steps.layers[0].natural))
    (one, deviation), (other, _) = found
    assert ((one - other) / deviation).square().mean().sqrt() < 0.3
    assert ((one - other) / deviation).abs().max() > 1e-6
    precisions = torch.stack([values[1].log().flatten() for values in found])
    assert torch.corrcoef(precisions)[0, 1] > 0.999
    x, _ = digits(500, seed=1)
    agreed = [(x @ mean[:, :-1].T + mean[:, -1]).argmax(1) for mean, _ in found]
    assert (agreed[0] == agreed[1]).double().mean() > 0.97


@pytest.mark.parametrize("split", [0.0, 0.5])
def test_hidden_units_that_start_alike_stay_alike(split):
    x, y = digits(300)
    steps = Steps(dense(24, 6, 3), prior_split=split, iterations=5)
    steps.take(x, y, torch.arange(300).split(100))
    mean, _ = moments(steps.layers[0].natural)
    spread = (mean - mean[0]).abs().max()
    assert mean.abs().max() > 1e-3
    assert spread < 1e-8 if split == 0 else spread > 0.1


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
def test_the_width_of_the_prior_below_a_step_does_not_matter(activation):
    x, y = digits(200)
    new, _ = digits(50, seed=1)
    found = []
    for variance in (1.0, 9.0):
        steps = Steps(
            dense(24, 8, 3), prior_variance=[variance, 10.0], activation=activation, output_activation="probit"
        )
        steps.take(x, y, torch.arange(200).split(100))
        found.append(output_moments(steps.network.chain, new).potential)
    apart = (found[0].mean - found[1].mean).abs().max()
    assert apart < 1e-6 if activation == "heaviside" else apart > 1e-2


def test_whole_steps_of_a_large_batch_and_two_layers_diverge_unless_they_are_halved(monkeypatch):
    x, y = digits(1000, flips=0.25)
    short, halved = (updated(prepared(dense(24, 20, 3)), x, y, 12, damping) for damping in (0.3, 1.0))
    monkeypatch.setattr(batch_update, "_TOLERATED_DECREASE", torch.inf)
    whole = updated(prepared(dense(24, 20, 3)), x, y, 12, 1.0)
    assert [found.halved > 0 for found in (short, halved, whole)] == [False, True, False]
    assert halved.log_evidence > short.log_evidence - 0.1
    assert whole.log_evidence < short.log_evidence - 1
    assert all(found.accepted and finite(found) for found in (short, halved, whole))


@pytest.mark.parametrize("sizes", [(24, 3), (24, 8, 3)])
def test_potentials_too_wide_to_mean_anything_leave_the_layers_as_they_were(sizes):
    x, y = digits(20)
    network = prepared(dense(*sizes))
    found = updated(network, 1e5 * x, y, iterations=4)
    assert not found.accepted
    assert found.halved >= 4
    for natural, block in zip(found.natural, network.chain.blocks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(natural, block.layer.natural, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_leaves_the_layers_as_they_were(value):
    x, y = digits(20)
    x[3, 2] = value
    network = prepared(dense(24, 8, 3))
    found = updated(network, x, y, iterations=4)
    assert not found.accepted
    assert finite(found)


def test_noise_of_a_batch_that_diverged_is_the_noise_of_before():
    x, _ = digits(20)
    network = prepared(dense(24, 1), regression=True, noise_variance=0.07, learn_noise=True)
    values = torch.randn(20, 1).double()
    assert updated(network, 1e5 * x, values).noise_variance == network[-1].noise_variance
    learned = updated(network, x, values).noise_variance
    assert learned.isfinite()
    assert learned != network[-1].noise_variance


def test_evidence_grows_from_the_first_iteration_to_the_last():
    x, y = digits(200)
    for options in ({}, {"activation": "sigmoid"}, {"weights": "categorical"}):
        found = [updated(prepared(dense(24, 8, 3), **options), x, y, n).log_evidence for n in (1, 40)]
        assert found[1] > found[0] + 1


@pytest.mark.parametrize("place", ["input", "target", "weight"])
@pytest.mark.parametrize("sizes", [(5, 1), (5, 4, 1)], ids=["one_layer", "two_layers"])
def test_a_nan_is_not_masked_by_the_solver(sizes, place):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(8, width, generator=generator, dtype=torch.float64) for width in (5, 1))
    network = prepared(dense(*sizes), regression=True)
    assert updated(network, x, y).accepted
    cavities = [block.layer.natural for block in network.chain.blocks]
    if place == "weight":
        mean = cavities[0].precision_mean.detach().clone()
        mean[0, 0] = torch.nan
        cavities[0] = cavities[0]._replace(precision_mean=mean)
    else:
        (x if place == "input" else y)[3, 0] = torch.nan
    found = updated(network, x, y, cavities=cavities)
    assert not found.accepted
    assert all(
        torch.equal(new.nan_to_num(), old.nan_to_num())
        for pair in zip(found.natural, cavities, strict=True)
        for new, old in zip(*pair, strict=True)
    )
    assert found.log_evidence.isnan()


def test_neurons_and_the_most_probable_levels_keep_nan():
    u = torch.tensor([-1.0, torch.nan, 1.0])
    neuron = MessageNeuron("probit")
    assert torch.equal(neuron(u).nan_to_num(7), torch.tensor([0.0, 7.0, 1.0]))
    torch.manual_seed(0)
    drawn = neuron.draw(u)
    assert torch.equal(drawn.isnan(), u.isnan())
    torch.manual_seed(0)
    expected = torch.bernoulli(neuron.probability(Potential(u.nan_to_num(), *(torch.zeros(3),) * 3)))
    assert torch.equal(drawn[[0, 2]], expected[[0, 2]])
    weights = LevelWeights([-1.0, 1.0], jitter=0.0, bias_variance=None)
    natural = Natural(torch.zeros(1, 3), torch.tensor([[0.5, torch.nan, -0.5]]))
    assert torch.equal(weights.most_probable(natural)[0].nan_to_num(7), torch.tensor([[1.0, 7.0, -1.0]]))
