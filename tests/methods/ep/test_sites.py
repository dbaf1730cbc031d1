"""Sites of batches: how they follow what the layer really moved, and how they travel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.linear_maps import DenseMap
from lightning_snn.methods.ep import GaussianWeights, LevelWeights, MessageLayer, Natural
from tests.methods.ep.task import assert_prior_and_sites_add_up


def layer() -> MessageLayer:
    return MessageLayer(DenseMap(), torch.empty(3, 5, dtype=torch.float64), GaussianWeights(1.0, 0.5))


def requested() -> Natural:
    return Natural(torch.rand(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64))


def move(layer: MessageLayer, *steps: Tensor) -> None:
    with torch.no_grad():
        for values, step in zip((layer.precision, layer.precision_mean), steps, strict=True):
            values += step


def register(layer: MessageLayer, *keys: int) -> list[Natural]:
    """Register a displacement for each key."""
    displacements = [requested() for _ in keys]
    layer.sites.register(layer.natural, [(key, 10, each) for key, each in zip(keys, displacements, strict=True)])
    return displacements


def site(layer: MessageLayer, key: int) -> Natural:
    layer.sites.update(layer.natural)
    found = layer.sites.site(key)
    assert found is not None
    return found


def test_the_site_of_a_single_batch_is_what_the_layer_moved_to_the_last_bit():
    one = layer()
    before = Natural(*(values.clone() for values in one.natural))
    register(one, 7)
    move(one, *(values / 3 for values in requested()))  # whatever the optimizer made of it
    found = site(one, 7)
    for part, after, earlier in zip(found, one.natural, before, strict=True):
        assert torch.equal(part, after - earlier)
        assert part.abs().max() > 0


def test_batches_of_one_step_share_what_the_layer_moved_by_what_they_asked_for():
    one = layer()
    first, second = register(one, 1, 2)
    move(one, *(0.5 * (a + b) for a, b in zip(first, second, strict=True)))
    for key, displacement in ((1, first), (2, second)):
        for part, expected in zip(site(one, key), displacement, strict=True):
            torch.testing.assert_close(part, 0.5 * expected)


def test_shares_add_up_to_the_move_whatever_became_of_the_displacements():
    one = layer()
    before = Natural(*(values.clone() for values in one.natural))
    register(one, 1, 2, 3)
    move(one, *requested())
    parts = [site(one, key) for key in (1, 2, 3)]
    for after, earlier, *shares in zip(one.natural, before, *parts, strict=True):
        torch.testing.assert_close(torch.stack(shares).sum(0), after - earlier)


def test_a_second_pass_adds_to_the_site_of_the_first():
    one = layer()
    for factor in (1.0, 0.25):
        displacement = register(one, 4)[0]
        move(one, *(factor * values for values in displacement))
    one.sites.update(one.natural)
    assert len(one.sites) == 1
    assert one.sites.samples == 10
    for part, values, prior in zip(site(one, 4), one.natural, one.prior, strict=True):
        torch.testing.assert_close(part, values - prior)


def test_no_site_changes_before_the_optimizer_steps():
    one = layer()
    first = register(one, 1)[0]
    one.sites.update(one.natural)
    assert one.sites.site(1) is None
    assert 1 not in one.sites
    assert one.sites.samples == len(one.sites) == 0
    second = register(one, 2)[0]
    move(one, *(a + b for a, b in zip(first, second, strict=True)))
    for part, expected in zip(site(one, 1), first, strict=True):
        torch.testing.assert_close(part, expected)
    assert one.sites.samples == 20


def test_a_move_of_precisions_alone_is_a_move():
    one = layer()
    register(one, 1)
    step = torch.rand(3, 5, dtype=torch.float64)
    move(one, step, torch.zeros_like(step))
    torch.testing.assert_close(site(one, 1).precision, step)


def test_the_cavity_is_the_layer_without_a_site():
    one = layer()
    displacement = register(one, 1)[0]
    move(one, *displacement)
    for values, prior in zip(one.cavity(site(one, 1)), one.prior, strict=True):
        torch.testing.assert_close(values, prior)
    assert all(torch.equal(a, b) for a, b in zip(one.cavity(None), one.natural, strict=True))


def test_precisions_of_gaussian_cavities_stay_positive_and_those_of_levels_may_be_negative():
    like = torch.empty(3, 5, dtype=torch.float64)
    gaussian = MessageLayer(DenseMap(), like, GaussianWeights(0.5, 0.0))
    levels = MessageLayer(DenseMap(), like, LevelWeights([0.0, 1.0], 0.5, 2.0))
    heavy = Natural(torch.full_like(like, 9.0), torch.zeros_like(like))
    assert torch.equal(gaussian.cavity(heavy).precision, torch.full_like(like, 2e-3))
    assert torch.equal(levels.cavity(heavy).precision[:, :-1], torch.full((3, 4), -9.0, dtype=torch.float64))
    torch.testing.assert_close(levels.cavity(heavy).precision[:, -1], torch.full((3,), 5e-4, dtype=torch.float64))


def trained() -> MessageLayer:
    one = layer()
    for key in (-3, 2**61):
        move(one, *register(one, key)[0])
        one.sites.update(one.natural)
    return one


def test_the_state_dict_carries_sites_to_a_new_layer_and_back_through_a_file(tmp_path):
    one = trained()
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = layer()
    register(other, 5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(other.sites) == 2
    assert other.sites.samples == 20
    for key in (-3, 2**61):
        assert all(torch.equal(a, b) for a, b in zip(site(one, key), site(other, key), strict=True))
    move(other, *requested())
    other.sites.update(other.natural)
    assert 5 not in other.sites  # what was pending belonged to the parameters of before


def test_saving_updates_pending_sites():
    one = layer()
    displacement = register(one, 1)[0]
    move(one, *displacement)
    other = layer()
    other.load_state_dict(one.state_dict())
    for part, expected in zip(site(other, 1), displacement, strict=True):
        torch.testing.assert_close(part, expected)


def test_a_state_without_sites_leaves_none():
    one = trained()
    one.load_state_dict(layer().state_dict())
    assert len(one.sites) == 0


def test_a_copy_goes_its_own_way():
    one = trained()
    register(one, 1)
    other = copy.deepcopy(one)
    move(other, *requested())
    other.sites.update(other.natural)
    one.sites.update(one.natural)
    assert 1 in other.sites
    assert 1 not in one.sites
    assert all(torch.equal(a, b) for a, b in zip(site(one, -3), site(other, -3), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites_and_what_is_pending_take_the_type_of_the_layer(dtype):
    one = trained()
    register(one, 1)
    one.to(dtype)
    move(one, *(values.to(dtype) for values in requested()))
    for key in (-3, 1):
        assert {part.dtype for part in site(one, key)} == {dtype}


def test_a_site_fades_with_the_layer_and_its_sum_with_the_prior_stays_the_layer():
    one = layer()
    for key, retained in ((1, 0.8), (2, 0.5), (3, 1.0)):
        move(one, *register(one, key)[0])
        one.sites.update(one.natural)
        one.fade(retained)
        one.sites.fade(retained)
    move(one, *register(one, 1)[0])
    assert_prior_and_sites_add_up([one], 1e-13)


def test_the_share_of_a_site_is_the_product_of_all_factors_since_its_step():
    one = layer()
    first = register(one, 1)[0]
    move(one, *first)
    one.sites.update(one.natural)
    one.sites.fade(0.5)
    second = register(one, 2)[0]
    move(one, *second)
    one.sites.update(one.natural)
    one.sites.fade(0.25)
    for key, displacement, share in ((1, first, 0.125), (2, second, 0.25)):
        for part, expected in zip(site(one, key), displacement, strict=True):
            torch.testing.assert_close(part, share * expected)


def test_sites_that_faded_travel_to_the_last_bit():
    one, other = layer(), layer()
    for key in (1, 2):
        move(one, *register(one, key)[0])
        one.sites.update(one.natural)
        one.sites.fade(0.7)
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.sites.fade(0.9)
    for key in (1, 2):
        for part, expected in zip(site(other, key), site(one, key), strict=True):
            assert torch.equal(part, expected)
    older = {name: values for name, values in one.state_dict().items() if "scales" not in name}
    other.load_state_dict(older)
    assert torch.equal(site(other, 1).precision, one.state_dict()["sites.precision"][0])


def test_sites_do_not_fade_while_displacements_are_pending():
    one = layer()
    register(one, 1)
    with pytest.raises(RuntimeError, match="no pending displacements"):
        one.sites.fade(0.5)
