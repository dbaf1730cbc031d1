"""Fading of early batches, and what makes steps cheap without a change of what they learn."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.linear_maps import DenseMap, KnownInputs
from lightning_snn.functional.spike_inputs import SpikeInputs, spike_lists
from lightning_snn.methods.base import Progress
from lightning_snn.methods.ep import batch_update
from tests.methods.ep.task import Steps, assert_prior_and_sites_add_up, dense, digits


@pytest.mark.parametrize("memory", ["per_batch", "average", "adf"])
def test_what_batches_contributed_fades_by_the_schedule(memory):
    x, y = digits(100)
    steps, plain = (Steps(dense(24, 3), memory=memory, fading=fading) for fading in (0.5, 0.0))
    for each in (steps, plain):
        each.take(x, y, [torch.arange(50)], 100)
    steps.method.progress = Progress(0.2, 100, step=3)
    steps.method.training_step(steps.network, x[None, 50:], y[50:])
    retained = 1 - 0.5 / 13
    for faded, kept, prior in zip(steps.layers[0].natural, plain.layers[0].natural, plain.layers[0].prior, strict=True):
        torch.testing.assert_close(faded, prior + retained * (kept - prior), rtol=1e-12, atol=1e-12)
        assert (faded - kept).abs().max() > 1e-3


@pytest.mark.parametrize("progress", [Progress(0.3, 100, step=3), Progress(0.0, 100, step=3, has_length=False)])
def test_nothing_fades_after_the_first_batches_or_without_epochs(progress):
    x, y = digits(100)
    steps = Steps(dense(24, 3), fading=0.5)
    steps.take(x, y, [torch.arange(50)], 100)
    before = [values.clone() for values in steps.layers[0].natural]
    steps.method.progress = progress
    steps.method.training_step(steps.network, x[None, 50:], y[50:])
    assert all(torch.equal(*pair) for pair in zip(before, steps.layers[0].natural, strict=True))


def test_layers_do_not_fade_while_batches_accumulate():
    x, y = digits(150)
    steps = Steps(dense(24, 3), fading=0.5)
    steps.take(x, y, [torch.arange(50)], 150)
    steps.optimizer.zero_grad()
    steps.ask(x[50:100], y[50:100], 150)
    before = [values.clone() for values in steps.layers[0].natural]
    steps.ask(x[100:], y[100:], 150)
    assert all(torch.equal(*pair) for pair in zip(before, steps.layers[0].natural, strict=True))
    steps.optimizer.step()
    assert_prior_and_sites_add_up(steps.layers)


def test_epochs_after_the_first_repair_what_faded():
    x, y = digits(200)
    found = []
    for fading in (0.9, 0.0):
        steps = Steps(dense(24, 3), fading=fading, iterations=2, damping=1.0, solver_iterations=20)
        for epoch in range(12):
            for index, batch in enumerate(torch.arange(200).split(50)):
                steps.optimizer.zero_grad()
                steps.method.progress = Progress(epoch + index / 4, 200, 4 * epoch + index)
                steps.method.training_step(steps.network, x[None, batch], y[batch]).objective.backward()
                steps.optimizer.step()
            if epoch == 0:
                assert_prior_and_sites_add_up(steps.layers)
        found.append(steps.layers[0].natural)
    for faded, kept in zip(*found, strict=True):
        torch.testing.assert_close(faded, kept, rtol=1e-4, atol=1e-4)


def test_solver_iterations_may_differ_between_layers():
    x, y = digits(100)
    found = {}
    for counts in (1, [1, 1], [1, 5], [5, 1]):
        steps = Steps(dense(24, 6, 3), solver_iterations=counts)
        steps.take(x, y, [torch.arange(100)])
        found[str(counts)] = [layer.natural.precision_mean for layer in steps.layers]
    assert all(torch.equal(*pair) for pair in zip(found["1"], found["[1, 1]"], strict=True))
    for other in ("[1, 5]", "[5, 1]"):
        assert not torch.equal(found["1"][1], found[other][1])
    with pytest.raises(ValueError, match="one per weight layer"):
        Steps(dense(24, 6, 3), solver_iterations=[1, 2, 3])


def _bound(kind: type[KnownInputs], linear: DenseMap, x: Tensor, outputs: int) -> KnownInputs:
    if kind is KnownInputs:
        return KnownInputs(linear, x)
    lists = spike_lists(x)
    assert lists is not None
    return SpikeInputs(linear, x, lists)


def test_sparse_spikes_learn_what_the_dense_layer_learns(monkeypatch):
    x, y = digits(200)
    x *= torch.rand(200, 24, generator=torch.Generator().manual_seed(1)) < 0.3
    found = []
    for kind in (KnownInputs, SpikeInputs):
        monkeypatch.setattr(batch_update, "known_inputs", partial(_bound, kind))
        steps = Steps(dense(24, 8, 3), iterations=2)
        for _ in range(2):
            steps.take(x, y, torch.arange(200).split(50))
        found.append(torch.cat([values.detach().flatten() for layer in steps.layers for values in layer.natural]))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)
    assert not torch.equal(*found)
