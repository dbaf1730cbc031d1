"""Tasks: readout, loss and prediction, apart from how they are learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from lightning_snn.methods import Classification, Prediction, Regression, Task
from lightning_snn.methods.tasks import mean_cross_entropy

LOGITS = torch.tensor([[[0.0, 1.0]], [[math.log(3) * 2, 1.0]]])  # T = 2, B = 1


@pytest.mark.parametrize("kind", [Classification, Regression])
@pytest.mark.parametrize(
    ("readout", "expected"),
    [("mean", [math.log(3), 1.0]), ("sum", [2 * math.log(3), 2.0]), ("last", [2 * math.log(3), 1.0])],
)
def test_a_task_reads_the_outputs_over_time(kind, readout, expected):
    torch.testing.assert_close(kind(readout).read(LOGITS), torch.tensor([expected]))


def test_a_readout_may_be_a_function():
    assert Classification(lambda outputs: outputs[0]).read(LOGITS).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("given", "read"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_outputs_are_read_in_float32_or_wider(given, read):
    assert Classification().read(torch.rand(3, 2, 4, dtype=given)).dtype == read


def test_narrow_outputs_are_widened_before_they_are_summed():
    outputs = torch.rand(300, 2, 4).bfloat16()
    torch.testing.assert_close(Classification("sum").read(outputs), outputs.double().sum(0).float())


def test_the_loss_of_a_classification_is_the_mean_cross_entropy():
    output, y = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert Classification().loss(output, y).item() == pytest.approx(expected)


def test_a_classification_predicts_the_softmax():
    prediction = Classification().predict(torch.tensor([[math.log(3), 0.0]]))
    torch.testing.assert_close(prediction.mean, torch.tensor([[0.75, 0.25]]))
    assert prediction.variance is None
    assert prediction.samples is None


def test_a_regression_predicts_its_output_and_loses_the_squared_error():
    output, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert Regression().loss(output, y).item() == 2.5
    assert torch.equal(Regression().predict(output).mean, output)


def test_a_target_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"`y` to be of shape \(4, 1\), .* but got \(4,\)"):
        Regression().loss(torch.zeros(4, 1), torch.zeros(4))


def test_predictions_are_combined_by_their_mean():
    parts = [Prediction(torch.tensor([[0.2, 0.8]])), Prediction(torch.tensor([[0.6, 0.4]]))]
    combined = Classification().combine(parts)
    torch.testing.assert_close(combined.mean, torch.tensor([[0.4, 0.6]]))
    assert torch.equal(combined.samples, torch.stack([part.mean for part in parts]))
    assert combined.variance is None


def test_a_combined_regression_has_the_variance_of_its_samples():
    combined = Regression().combine([Prediction(torch.tensor([[value]])) for value in (1.0, 2.0, 6.0)])
    torch.testing.assert_close(combined.mean, torch.tensor([[3.0]]))
    torch.testing.assert_close(combined.variance, torch.tensor([[14 / 3]]))


def test_an_unknown_readout_is_refused_by_name():
    with pytest.raises(ValueError, match="Expected argument `readout` to be one of .* but got 'median'"):
        Classification("median")


def test_a_task_without_loss_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="Task defines no loss"):
        Task().loss(torch.zeros(1), torch.zeros(1))
    with pytest.raises(NotImplementedError, match="Task defines no prediction"):
        Task().predict(torch.zeros(1))


# after each time step


def prefixes_one_by_one(task: Task, outputs: torch.Tensor) -> torch.Tensor:
    return torch.stack([task.read(outputs[:step]) for step in range(1, len(outputs) + 1)])


@pytest.mark.parametrize("readout", ["mean", "max", "last", "sum", lambda outputs: outputs.median(0).values])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_counted_spikes_are_read_after_each_step_exactly_as_from_the_steps_so_far(readout, dtype):
    task, outputs = Task(readout), torch.randint(0, 2, (13, 4, 5)).to(dtype)
    found = task.read_prefixes(outputs)
    assert found.dtype == torch.float32
    assert torch.equal(found, prefixes_one_by_one(task, outputs))
    assert torch.equal(found[-1], task.read(outputs))


@pytest.mark.parametrize("readout", ["mean", "max", "last", "sum"])
def test_real_outputs_are_read_after_each_step_to_rounding(readout):
    task, outputs = Task(readout), torch.randn(40, 3, 5, dtype=torch.float64)
    found = task.read_prefixes(outputs)
    torch.testing.assert_close(found, prefixes_one_by_one(task, outputs), rtol=1e-13, atol=1e-14)
    backwards = prefixes_one_by_one(task, outputs.flip(0)).flip(0)
    assert not torch.allclose(found[:-1], backwards[1:])


def test_a_function_reads_every_prefix_once():
    lengths = []

    def readout(outputs):
        lengths.append(len(outputs))
        return outputs.amin(0)

    outputs = torch.randn(4, 2, 3)
    assert torch.equal(Task(readout).read_prefixes(outputs), outputs.cummin(0).values)
    assert lengths == [1, 2, 3, 4]


def test_what_is_read_after_each_step_has_the_gradients_of_the_steps_so_far():
    outputs = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    Task("mean").read_prefixes(outputs)[2].sum().backward()
    torch.testing.assert_close(outputs.grad[:, 0, 0], torch.tensor([1, 1, 1, 0, 0], dtype=torch.float64) / 3)


def test_no_steps_are_refused_by_both_readings():
    for kind in ("mean", "max", "last", "sum"):
        with pytest.raises(ValueError, match=r"at least one time step, but got .*\(0, 2, 3\)"):
            Task(kind).read_prefixes(torch.zeros(0, 2, 3))


def test_predictions_after_each_step_combine_as_predictions_of_the_end_do():
    task = Classification()
    runs = [torch.randn(6, 4, 5, dtype=torch.float64) for _ in range(3)]
    anytime = task.combine([task.predict(task.read_prefixes(outputs)) for outputs in runs])
    assert anytime.mean.shape == (6, 4, 5)
    assert anytime.samples.shape == (3, 6, 4, 5)
    assert anytime.mutual_information.shape == (6, 4)
    for step in range(6):
        alone = task.combine([task.predict(task.read(outputs[: step + 1])) for outputs in runs])
        torch.testing.assert_close(anytime.mean[step], alone.mean, rtol=1e-13, atol=0)
        for quantity in ("predictive_entropy", "expected_entropy", "mutual_information"):
            torch.testing.assert_close(
                getattr(anytime, quantity)[step], getattr(alone, quantity), rtol=1e-11, atol=1e-13
            )


# uncertainty


def mixture(number: int = 8) -> Prediction:
    task = Classification()
    return task.combine([task.predict(3 * torch.randn(20, 5, dtype=torch.float64)) for _ in range(number)])


def test_the_uncertainty_of_a_prediction_is_that_of_scipy():
    prediction = mixture()
    samples = prediction.samples.numpy()
    total, expected = entropy(samples.mean(0), axis=-1), entropy(samples, axis=-1).mean(0)
    torch.testing.assert_close(prediction.predictive_entropy, torch.as_tensor(total), rtol=1e-12, atol=0)
    torch.testing.assert_close(prediction.expected_entropy, torch.as_tensor(expected), rtol=1e-12, atol=0)
    divergence = np.mean([entropy(sample, samples.mean(0), axis=-1) for sample in samples], axis=0)
    torch.testing.assert_close(prediction.mutual_information, torch.as_tensor(divergence), rtol=1e-11, atol=0)


def test_one_sample_holds_no_information_on_the_model_and_two_do():
    assert mixture(1).mutual_information.tolist() == [0] * 20
    assert mixture(2).mutual_information.min() > 0


def test_certain_predictions_have_no_entropy_and_no_nan():
    certain = Prediction(torch.eye(3), None, torch.eye(3)[None])
    for quantity in (certain.predictive_entropy, certain.expected_entropy, certain.mutual_information):
        assert quantity.tolist() == [0, 0, 0]


def test_without_samples_only_the_predictive_entropy_is_known():
    prediction = Classification().predict(torch.zeros(2, 4))
    assert prediction.predictive_entropy.tolist() == pytest.approx([math.log(4)] * 2)
    for quantity in ("expected_entropy", "mutual_information"):
        with pytest.raises(ValueError, match=f"a prediction with samples for `{quantity}`"):
            getattr(prediction, quantity)


@pytest.mark.parametrize("quantity", ["predictive_entropy", "expected_entropy", "mutual_information"])
@pytest.mark.parametrize("number", [0, 3])
def test_a_regression_has_a_variance_and_no_entropies(quantity, number):
    task = Regression()
    parts = [task.predict(torch.rand(4, 2).softmax(-1)) for _ in range(max(number, 1))]
    prediction = task.combine(parts) if number else parts[0]
    with pytest.raises(ValueError, match=f"class probabilities for `{quantity}`, but got one of a regression"):
        getattr(prediction, quantity)


def test_mean_cross_entropy_is_the_loss_of_a_classification_of_the_mean_output():
    outputs, y = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    assert mean_cross_entropy(outputs, y) == Classification("mean").loss(Classification("mean").read(outputs), y)
    assert mean_cross_entropy(outputs, y) != Classification("last").loss(Classification("last").read(outputs), y)
