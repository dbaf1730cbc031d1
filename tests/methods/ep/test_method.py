"""Expectation propagation as a method: effects of its steps on posterior and sites, and its memories."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_snn.methods import ExpectationPropagation, Progress
from lightning_snn.methods.ep import Natural
from tests.methods.ep.task import Steps, assert_prior_and_sites_add_up, dense, digits, updated

TOLERANCES = {"rtol": 1e-10, "atol": 1e-10}


def copied(steps: Steps) -> list[Natural]:
    return [Natural(*(values.clone() for values in layer.natural)) for layer in steps.layers]


def test_the_gradient_is_minus_the_displacement_that_the_batch_asks_for():
    x, y = digits(50)
    steps = Steps(dense(24, 6, 3))
    expected = updated(steps.network, x, y).natural
    steps.ask(x, y)
    for layer, new in zip(steps.layers, expected, strict=True):
        for parameter, after in zip((layer.precision, layer.precision_mean), new, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, parameter.detach() - after, **TOLERANCES)
            assert parameter.grad.abs().max() > 1e-3


@pytest.mark.parametrize("weights", ["gaussian", "categorical"])
def test_a_second_visit_starts_at_the_posterior_and_leaves_cavity_and_new_site(weights):
    x, y = digits(100)
    parts = torch.arange(100).split(50)
    steps = Steps(dense(24, 6, 3), weights=weights)
    before = copied(steps)
    steps.take(x, y, parts[:1])
    sites = [Natural(*(a - b for a, b in zip(*pair, strict=True))) for pair in zip(copied(steps), before, strict=True)]
    steps.take(x, y, parts[1:])
    cavities = [
        Natural(*(a - b for a, b in zip(*pair, strict=True))) for pair in zip(copied(steps), sites, strict=True)
    ]
    batch = x[parts[0]], y[parts[0]]
    expected = updated(steps.network, *batch, cavities=cavities, start=copied(steps)).natural
    again = updated(steps.network, *batch).natural
    from_the_cavity = updated(steps.network, *batch, cavities=cavities).natural
    steps.take(x, y, parts[:1])
    assert_prior_and_sites_add_up(steps.layers)
    for layer, new, *others in zip(steps.layers, expected, again, from_the_cavity, strict=True):
        assert len(layer.sites) == 2
        for values, after, *wrong in zip(layer.natural, new, *others, strict=True):
            torch.testing.assert_close(values, after, rtol=1e-7, atol=1e-7)
            assert not any(torch.allclose(values, other, rtol=1e-3) for other in wrong)


def test_half_a_step_moves_posterior_and_site_halfway():
    x, y = digits(50)
    whole, half = (Steps(dense(24, 6, 3), step_size=size) for size in (1.0, 0.5))
    for steps in (whole, half):
        steps.take(x, y, [torch.arange(50)])
        steps.update_sites()
    for full, part in zip(whole.layers, half.layers, strict=True):
        (key,) = full.sites._sites
        for a, b, prior, site in zip(full.natural, part.natural, full.prior, part.sites.site(key), strict=True):
            torch.testing.assert_close(b - prior, 0.5 * (a - prior), **TOLERANCES)
            torch.testing.assert_close(site, b - prior, **TOLERANCES)


def test_taking_a_site_away_and_adding_it_again_changes_nothing():
    x, y = digits(60)
    steps = Steps(dense(24, 6, 3), iterations=3)
    steps.take(x, y, torch.arange(60).split(20))
    steps.update_sites()
    for layer in steps.layers:
        for key in layer.sites._sites:
            site = layer.sites.site(key)
            for values, without, part in zip(layer.natural, layer.cavity(site), site, strict=True):
                torch.testing.assert_close(without + part, values, rtol=1e-14, atol=1e-12)
        assert (layer.precision > 0).all()


def test_batches_are_found_in_any_order_and_with_their_samples_in_any_order():
    x, y = digits(120)
    parts = torch.arange(120).split(20)
    steps = Steps(dense(24, 6, 3), iterations=3)
    for epoch in range(3):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(6, generator=generator).tolist()
        steps.take(x, y, [parts[i][torch.randperm(20, generator=generator)] for i in order], 120)
    assert_prior_and_sites_add_up(steps.layers, 1e-9)
    assert {len(layer.sites) for layer in steps.layers} == {6}


class Recording(ExpectationPropagation):
    """Records the cavities that it starts from."""

    def training_step(self, network, x, y):
        self.started = []
        ask = self.update_memory.cavities

        def asked(*arguments):
            self.started = ask(*arguments)
            return self.started

        self.update_memory.cavities = asked
        step = super().training_step(network, x, y)
        del self.update_memory.cavities
        return step


def cavities_of_passes(memory: str) -> list[tuple[Natural, Natural, Natural]]:
    """Cavity, posterior and prior before each of 4 steps on 2 batches, of 40 and 20 samples."""
    x, y = digits(60)
    parts = (torch.arange(40), torch.arange(40, 60))
    method = Recording(memory=memory, iterations=2)
    torch.manual_seed(0)
    network = method.prepare(dense(24, 3))
    optimizer, layer = method.configure_optimizer(network), network.chain.blocks[0].layer
    found = []
    for index in range(4):
        method.progress = Progress(index / 2, 60)
        before = Natural(*(values.clone() for values in layer.natural))
        optimizer.zero_grad()
        method.training_step(network, x[parts[index % 2]][None], y[parts[index % 2]]).objective.backward()
        found.append((Natural(*(values.clone() for values in method.started[0])), before, layer.prior))
        optimizer.step()
    return found


def test_average_memory_takes_the_share_of_a_batch_away_from_the_second_pass_on():
    for index, (cavity, posterior, prior) in enumerate(cavities_of_passes("average")):
        share = (0, 0, 40 / 60, 20 / 60)[index]
        for found, values, start in zip(cavity, posterior, prior, strict=True):
            torch.testing.assert_close(found, values - share * (values - start), **TOLERANCES)


def test_assumed_densities_take_nothing_away():
    for cavity, posterior, _ in cavities_of_passes("adf"):
        assert all(torch.equal(found, values) for found, values in zip(cavity, posterior, strict=True))


def test_all_memories_are_one_in_the_first_pass_and_differ_in_the_second():
    x, y = digits(120)
    parts = torch.arange(120).split(30)
    found = {}
    for memory in ("per_batch", "average", "adf"):
        steps = Steps(dense(24, 6, 3), memory=memory, iterations=3)
        steps.take(x, y, parts, 120)
        first = copied(steps)
        steps.take(x, y, parts, 120)
        found[memory] = (first, copied(steps))
    for memory in ("average", "adf"):
        for one, other in zip(found["per_batch"][0], found[memory][0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert not torch.allclose(found["per_batch"][1][0].precision, found[memory][1][0].precision)
    assert found["adf"][1][0].precision.mean() > found["per_batch"][1][0].precision.mean()


def test_the_average_of_an_unknown_number_of_samples_is_refused():
    x, y = digits(20)
    steps = Steps(dense(24, 3), memory="average")
    with pytest.raises(ValueError, match='number of training samples to be known for `memory="average"`'):
        steps.ask(x, y)
    Steps(dense(24, 3), memory="adf").ask(x, y)


def test_the_average_of_fewer_samples_than_a_batch_has_is_refused():
    x, y = digits(20)
    with pytest.raises(ValueError, match="at least that of a batch, but got 6 for a batch of 20"):
        Steps(dense(24, 3), memory="average").ask(x, y, 6)
    Steps(dense(24, 3), memory="average").ask(x, y, 20)


def test_the_count_of_samples_is_in_the_state_dict_and_no_buffer_that_weight_averages_would_average():
    x, y = digits(20)
    steps = Steps(dense(24, 3), memory="average")
    steps.ask(x, y, 20)
    state = steps.method.state_dict()
    assert state["update_memory.samples_seen"] == 20
    assert list(steps.method.buffers()) == []
    other = ExpectationPropagation(memory="average")
    other.load_state_dict(state)
    assert other.update_memory.samples_seen == 20
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_a_batch_that_diverges_is_skipped_and_keeps_its_site():
    x, y = digits(60)
    parts = torch.arange(60).split(20)
    steps = Steps(dense(24, 6, 3), iterations=3)
    steps.take(x, y, parts, 60)
    steps.update_sites()
    before, sites = copied(steps), [copy.deepcopy(layer.sites._sites) for layer in steps.layers]
    steps.method.progress = Progress(1.0, 60)
    steps.method.damping = torch.nan
    step = steps.method.training_step(steps.network, x[parts[1]][None], y[parts[1]])
    assert step.metrics["skipped"] == 1
    assert step.metrics["residual"] == torch.inf
    assert step.metrics["halved"] >= 3
    steps.optimizer.zero_grad()
    step.objective.backward()
    steps.optimizer.step()
    steps.update_sites()
    for layer, old, kept in zip(steps.layers, before, sites, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer.natural, old, strict=True))
        assert layer.sites._sites.keys() == kept.keys()
    steps.method.damping = 0.3
    steps.take(x, y, parts, 60)
    assert_prior_and_sites_add_up(steps.layers)
