"""The metric classes: batches, collections, dtypes, devices, distributed processes."""

from __future__ import annotations

import doctest
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torchmetrics import MetricCollection

import lightning_snn.metrics.probability as probability
from lightning_snn.metrics import BitAccuracy, BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.functional import bit_accuracy, brier_score, negative_log_likelihood, within_pair_accuracy
from tests.support.processes import on_two_processes

PAIRS = [(1, 2), (5, 3)]
METRICS = {
    "negative_log_likelihood": (NegativeLogLikelihood, negative_log_likelihood),
    "brier_score": (BrierScore, brier_score),
    "bit_accuracy": (BitAccuracy, bit_accuracy),
    "within_pair_accuracy": (lambda: WithinPairAccuracy(PAIRS), lambda p, y: within_pair_accuracy(p, y, PAIRS)),
}
every_metric = pytest.mark.parametrize(("build", "function"), METRICS.values(), ids=METRICS.keys())


def samples(number: int = 200, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    probabilities = (2 * torch.randn(number, classes, generator=generator)).softmax(dim=1)
    return probabilities, torch.randint(classes, (number,), generator=generator)


@every_metric
def test_batches_of_unequal_size_give_the_score_of_all_samples_at_once(build, function):
    probabilities, targets = samples()
    metric = build()
    batch_values = []
    for part in torch.arange(200).split([120, 64, 15, 1]):
        batch_values.append(metric(probabilities[part], targets[part]))
    expected = function(probabilities, targets)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)
    assert abs(torch.stack(batch_values).nanmean() - expected) > 1e-3, "the mean of batch means is another number"


@every_metric
def test_forward_returns_the_score_of_the_batch(build, function):
    metric = build()
    metric.update(*samples(50))
    torch.testing.assert_close(metric(*samples(30)), function(*samples(30)))


@every_metric
def test_merging_two_metrics_gives_the_score_of_all_samples(build, function):
    probabilities, targets = samples()
    one, other = build(), build()
    one.update(probabilities[:150], targets[:150])
    other.update(probabilities[150:], targets[150:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), function(probabilities, targets), rtol=1e-12, atol=0)


@every_metric
def test_reset_forgets_every_sample(build, function):
    metric = build()
    metric.update(*samples(50))
    metric.reset()
    metric.update(*samples(30))
    torch.testing.assert_close(metric.compute(), function(*samples(30)))


@every_metric
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_the_score_of_no_sample_is_nan(build, function):
    assert build().compute().isnan()


def test_within_pair_accuracy_is_nan_until_a_sample_of_a_pair_was_seen():
    metric = WithinPairAccuracy(pairs=[(1, 2)])
    metric.update(torch.full((3, 4), 0.25), torch.tensor([0, 3, 0]))
    assert metric.compute().isnan()
    metric.update(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([2]))
    assert metric.compute() == 1.0


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_of_another_dtype_are_summed_in_float64(build, function, dtype):
    probabilities, targets = samples()
    metric = build()
    metric.update(probabilities.to(dtype), targets)
    torch.testing.assert_close(
        metric.compute(), function(probabilities.to(dtype).double(), targets), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_the_sum_does_not_stagnate_in_a_module_that_is_cast_to_half_precision(cast):
    module = cast(nn.ModuleDict({"weights": nn.Linear(2, 2), "score": NegativeLogLikelihood()}))
    assert module["weights"].weight.dtype != torch.float32
    probabilities, targets = torch.full((64, 8), 1 / 8), torch.zeros(64, dtype=torch.long)
    for _ in range(50):
        module["score"].update(probabilities, targets)
    assert module["score"].compute().item() == pytest.approx(torch.tensor(8.0, dtype=torch.float64).log().item())
    module["score"].reset()
    module["score"].update(probabilities, targets)
    assert module["score"].compute().dtype == torch.float64


@every_metric
def test_the_states_follow_the_device(build, function):
    metric = build().to("meta")
    states = [getattr(metric, name) for name in metric._defaults]
    assert len(states) == 2
    assert all(state.device.type == "meta" for state in states)


def test_a_device_without_float64_gets_float32_states(monkeypatch):
    def without_float64_on_meta(device: torch.device) -> torch.dtype:
        return torch.float32 if device.type == "meta" else torch.float64

    monkeypatch.setattr(probability, "accumulation_dtype", without_float64_on_meta)
    metric = BrierScore()
    assert metric.brier_score_total.dtype == torch.float64
    assert metric.to("meta").brier_score_total.dtype == torch.float32
    assert metric.brier_score_count.dtype == torch.int64


def test_metrics_that_start_out_alike_do_not_share_their_sums_in_a_collection():
    collection = MetricCollection(
        {
            "nll": NegativeLogLikelihood(),
            "brier": BrierScore(),
            "first": WithinPairAccuracy([(0, 1)]),
            "second": WithinPairAccuracy([(2, 3)]),
        }
    )
    collection.update(torch.eye(4), torch.arange(4))
    collection.update(torch.eye(4)[:, [1, 0, 2, 3]] * 0.8 + 0.05, torch.arange(4))
    result = collection.compute()
    assert result["first"] == 0.5
    assert result["second"] == 1.0
    assert result["nll"].item() != pytest.approx(result["brier"].item(), rel=1e-3)


@every_metric
def test_a_metric_survives_pickling_with_its_sums(build, function):
    metric = build()
    metric.update(*samples())
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


def test_the_declared_facts_hold():
    certain, right, wrong = torch.eye(2), torch.tensor([0, 1]), torch.tensor([1, 0])
    for metric in (BrierScore(), BitAccuracy(), WithinPairAccuracy([(0, 1)])):
        best, worst = (metric(certain, right), metric(certain, wrong))
        if metric.higher_is_better:
            best, worst = worst, best
        assert best == metric.plot_lower_bound
        assert worst == metric.plot_upper_bound
    assert NegativeLogLikelihood()(certain, right) == NegativeLogLikelihood.plot_lower_bound
    assert NegativeLogLikelihood()(certain, wrong) > 0
    assert not NegativeLogLikelihood.higher_is_better
    for build, _ in METRICS.values():
        assert build().full_state_update is False
        value = build()(samples()[0].requires_grad_(), samples()[1])
        assert value.requires_grad == build().is_differentiable


def test_bad_pairs_are_refused_when_the_metric_is_built():
    with pytest.raises(ValueError, match="Expected argument `pairs` to be disjoint pairs"):
        WithinPairAccuracy([(0, 1), (1, 2)])


def test_a_refused_batch_leaves_the_sums_as_they_were():
    metric = BrierScore()
    metric.update(*samples())
    before = metric.compute()
    with pytest.raises(ValueError, match="Expected argument `probabilities` to hold values within"):
        metric.update(2 * samples()[0], samples()[1])
    assert metric.compute() == before


def test_the_examples_in_the_docstrings_are_right():
    result = doctest.testmod(probability)
    assert result.attempted >= 3
    assert result.failed == 0


def _score_every_second_sample(rank: int) -> dict[str, torch.Tensor]:
    probabilities, targets = samples(201)
    results = {}
    for name, (build, _) in METRICS.items():
        metric = build()
        metric.update(probabilities[rank::2], targets[rank::2])
        results[name] = metric.compute()
    return results


def test_two_processes_with_unequal_shares_get_the_score_of_all_samples(tmp_path: Path):
    of_ranks = on_two_processes(_score_every_second_sample, tmp_path)
    probabilities, targets = samples(201)
    for name, (_, function) in METRICS.items():
        expected = function(probabilities, targets)
        assert expected != function(probabilities[::2], targets[::2])
        for results in of_ranks:
            torch.testing.assert_close(results[name], expected, rtol=1e-12, atol=0)
