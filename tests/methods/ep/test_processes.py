"""Messages over several processes, each with batches of its own. Apart, so that a new process imports little."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.data import FixedBatches
from lightning_snn.methods import ExpectationPropagation, Progress
from tests.methods.ep.task import dense, digits
from tests.support.processes import on_two_processes

SAMPLES = 240
MEMORIES = ("per_batch", "average")


class Objective(nn.Module):
    """The objective of a batch."""

    def __init__(self, memory: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.method = ExpectationPropagation(iterations=5, memory=memory)
        self.network = self.method.prepare(dense(24, 6, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.method.progress = Progress(0.0, SAMPLES)  # over all processes, as the module reports
        return self.method.training_step(self.network, x[None], y).objective


def one_pass(objective: Objective, processes: int) -> None:
    call = objective if processes == 1 else nn.parallel.DistributedDataParallel(objective)
    optimizer = objective.method.configure_optimizer(objective.network)
    assert optimizer is not None
    x, y = digits(SAMPLES)
    for batch in FixedBatches(range(SAMPLES), 30).batches:
        optimizer.zero_grad()
        call(x[batch], y[batch]).backward()
        optimizer.step()


def measured(objective: Objective) -> dict[str, Tensor]:
    """Posterior, prior and sites, and the accuracy on new samples."""
    x, y = digits(500, seed=1)
    right = objective.method.predict(objective.network, x[None]).mean.argmax(1) == y
    return {
        "accuracy": right.double().mean(),
        **{name: value.clone() for name, value in objective.state_dict().items()},
    }


def of_passes(memory: str, processes: int) -> dict[str, dict[str, Tensor]]:
    """After two passes, and after a pass that went on in a new module."""
    whole, resumed = Objective(memory, 0), Objective(memory, 1)
    one_pass(whole, processes)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    one_pass(whole, processes)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    one_pass(resumed, processes)
    return {"whole": measured(whole), "resumed": measured(resumed)}


def of_memories(rank: int) -> dict[str, dict[str, dict[str, Tensor]]]:
    return {memory: of_passes(memory, 2) for memory in MEMORIES}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, dict[str, Tensor]]]]:
    """Return the results of training on each of two processes."""
    return on_two_processes(of_memories, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("memory", MEMORIES)
def test_two_processes_with_their_own_batches_learn_one_posterior(of_ranks, memory):
    first, second = (found[memory]["whole"] for found in of_ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    alone = of_passes(memory, 1)["whole"]
    assert first.keys() == alone.keys()
    assert alone["accuracy"] > 0.9
    assert first["accuracy"] > alone["accuracy"] - 0.02
    assert not torch.equal(first["network.0.precision"], alone["network.0.precision"])


@pytest.mark.parametrize("layer", ["network.0.", "network.2."])
def test_both_processes_know_the_sites_of_all_batches_and_these_add_up(of_ranks, layer):
    alone = of_passes("per_batch", 1)["whole"]
    for found in (ranks["per_batch"]["whole"] for ranks in of_ranks):
        assert sorted(found[f"{layer}sites.keys"].tolist()) == sorted(alone[f"{layer}sites.keys"].tolist())
        assert found[f"{layer}sites.sizes"].tolist() == [30] * 8
        for name in ("precision", "precision_mean"):
            assert (found[f"{layer}sites.{name}"].abs().amax((1, 2)) > 0).all()
            expected = found[f"{layer}prior_{name}"] + found[f"{layer}sites.{name}"].sum(0)
            torch.testing.assert_close(found[layer + name], expected, rtol=1e-10, atol=1e-10)


def test_both_processes_count_the_samples_of_both(of_ranks):
    assert [found["average"]["whole"]["method.update_memory.samples_seen"] for found in of_ranks] == [2 * SAMPLES] * 2


@pytest.mark.parametrize("memory", MEMORIES)
def test_two_processes_resume_to_the_posterior_of_an_uninterrupted_run(of_ranks, memory):
    for found in of_ranks:
        whole, resumed = found[memory]["whole"], found[memory]["resumed"]
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
