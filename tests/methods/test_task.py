"""Tasks: readout, loss and prediction, apart from how they are learned."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_snn.methods import Classification, Prediction, Regression, Task

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
    with pytest.raises(ValueError, match=r"readout's shape \(4, 1\), but got \(4,\)"):
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
