"""Types and sizes of inputs and targets: one rule for every method and every entry."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import NoisySpikes, Prediction, Progress, RateBackprop, Step, SurrogateGradient
from lightning_snn.nn.folding import as_input
from tests.contract.table import METHOD_RUNS, METHODS, MethodRow, every_method
from tests.support.event_order import CLASSES, loader, order_of_events
from tests.support.slow import others_slow
from tests.support.training import time_first, trainer

X, Y = order_of_events(4)
T, B = X.shape[:2]
Entry = Callable[[SpikingModule, Any, Any], Any]

ENTRIES: dict[str, Entry] = {
    "a training step": lambda module, x, y: module.training_step((x, y), 0),
    "a validation step": lambda module, x, y: module.validation_step((x, y), 0)["prediction"],
    "a test step": lambda module, x, y: module.test_step((x, y), 0)["prediction"],
    "a prediction step": lambda module, x, y: module.predict_step(x, 0),
    "a prediction step on a pair": lambda module, x, y: module.predict_step((x, y), 0),
    "a call": lambda module, x, y: module(x),
    "training_step of the method": lambda module, x, y: module.method.training_step(module.network, x, y),
    "predict of the method": lambda module, x, y: module.method.predict(module.network, x),
    "predict_anytime of the method": lambda module, x, y: module.method.predict_anytime(module.network, x),
    "run": lambda module, x, y: run(module.network, x),
}
WITH_TARGETS = ("a training step", "a validation step", "a test step", "training_step of the method")


@cache
def _built(name: str) -> SpikingModule:
    row = next(each for each in METHODS if each.name == name)
    torch.manual_seed(0)
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES, batch_first=False)
    module.method.progress = Progress(0.5, 64)
    return module


def build(row: MethodRow) -> SpikingModule:
    return copy.deepcopy(_built(row.name))


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors of what an entry returns."""
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, (Prediction, Step))
    return [value for value in vars(result).values() if isinstance(value, Tensor)]


def results(row: MethodRow, name: str, x: Any, y: Any = Y, convert: Callable[[Any], Any] = lambda module: module):
    module = convert(build(row))
    torch.manual_seed(1)
    return tensors(ENTRIES[name](module, x, y))


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_of_a_narrower_dtype_are_those_values_in_the_dtype_of_the_parameters(row, dtype):
    narrow = X.to(dtype)
    assert not torch.equal(narrow.float(), X)
    for name in ENTRIES:
        assert equal(results(row, name, narrow), results(row, name, narrow.float())), name


@every_method
def test_a_network_in_float64_takes_float32_exactly(row):
    for name in ENTRIES:
        found, expected = (results(row, name, x, convert=SpikingModule.double) for x in (X, X.double()))
        assert equal(found, expected), name
        assert found[0].dtype == torch.float64


COUNTS = (torch.bool, torch.uint8, torch.int8, torch.int16)
NOT_FLOATING = (*COUNTS, torch.int32, torch.int64, torch.complex64)


PAIRS = [(METHOD_RUNS[0], dtype) for dtype in NOT_FLOATING]
PAIRS += [(row, dtype) for row in METHOD_RUNS[1:] for dtype in (torch.bool, torch.int64)]


@pytest.mark.parametrize(
    ("row", "dtype"),
    others_slow(PAIRS, fast=[pair for pair in PAIRS if not pair[0].slow]),
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_counts_and_indices_are_refused_by_every_entry(row, dtype):
    message = f"Expected argument `x` in floating point, but got {dtype}. Convert it with `x.float()`"
    for name in ENTRIES:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            results(row, name, X.to(dtype))


@every_method
@pytest.mark.parametrize(
    ("given", "parameters"),
    [(torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_inputs_that_the_parameters_cannot_hold_are_refused_by_every_entry(row, given, parameters):
    message = f"in the dtype of the parameters, {parameters}, but got {given}. Convert it with"
    for name in ENTRIES:
        module = build(row).to(parameters)
        if next(module.network.parameters()).dtype != parameters:
            return  # natural parameters stay in float32
        with pytest.raises(ValueError, match=re.escape(message)):
            ENTRIES[name](module, X.to(given), Y)


class Indices(nn.Module):
    """A network of one's own that takes indices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), LIF(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(nn.functional.one_hot(x, 6).float())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("method", [SurrogateGradient, NoisySpikes])
def test_an_embedding_takes_indices(method, dtype):
    network = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 8), LIF(), nn.Linear(8, CLASSES))
    module = SpikingModule(network, method(), num_classes=CLASSES)
    x = torch.randint(0, 6, (T, B), dtype=dtype)
    for name in ENTRIES:
        assert all(value.isfinite().all() for value in tensors(ENTRIES[name](module, x, Y))), name


def test_a_network_of_ones_own_may_take_indices_which_rates_cannot():
    x = torch.randint(0, 6, (T, B))
    module = SpikingModule(Indices(), num_classes=CLASSES)
    assert module.training_step((x, Y), 0).isfinite()
    with pytest.raises(ValueError, match=r"rate-based backpropagation, which averages inputs over time, but"):
        SpikingModule(Indices(), RateBackprop(), num_classes=CLASSES).training_step((x, Y), 0)


def test_a_network_without_parameters_takes_any_floating_point():
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert as_input(LIF(), torch.rand(T, B, 2, dtype=dtype)).dtype == dtype
    x = torch.rand(T, B, 2)
    assert as_input(nn.Linear(2, 3), x) is x


@every_method
def test_sequences_without_a_step_are_refused_by_every_entry(row):
    for name in ENTRIES:
        with pytest.raises(ValueError, match=r"`x` to be of shape \[T, B, \.\.\.\] with T of at least 1, but got \(0"):
            results(row, name, X[:0])


@every_method
def test_batches_without_a_sample_give_empty_predictions_and_cannot_be_learned(row):
    for name in ENTRIES:
        if name in WITH_TARGETS:
            with pytest.raises(ValueError, match="Expected at least one sample in a batch with targets"):
                results(row, name, X[:, :0], Y[:0])
            continue
        (first, *_) = results(row, name, X[:, :0], Y[:0])
        anytime = name in ("predict_anytime of the method", "a call", "run")
        assert first.shape == ((T, 0, CLASSES) if anytime else (0, CLASSES)), name


NO_TENSORS = {
    "an array": (
        X.numpy(),
        r"`x` to be a tensor of shape \[T, B, \.\.\.\], but got a ndarray. Convert it with `torch",
    ),
    "a dict": ({"frames": X}, r"(`x` to be a tensor .*|`batch` to be a pair, .*)but got a dict"),
    "a list": (
        [X, X, X],
        r"`x` to be a tensor .*but got a (list|tuple) of 3|`lengths` of a batch to be .* got torch.fl",
    ),
}


@every_method
@pytest.mark.parametrize("kind", NO_TENSORS)
def test_inputs_that_are_no_tensor_are_refused_by_every_entry(row, kind):
    x, message = NO_TENSORS[kind]
    for name in ENTRIES:
        with pytest.raises(ValueError, match=message):
            results(row, name, x)


@every_method
@pytest.mark.parametrize("batch", [{"x": X, "y": Y}, {"frames": X}], ids=str)
def test_a_batch_that_is_a_dict_is_refused_by_every_step(row, batch):
    module = build(row)
    for step in (module.training_step, module.validation_step, module.test_step, module.predict_step):
        with pytest.raises(ValueError, match="`batch` to be a pair, .*but got a dict with the keys .*read_batch"):
            step(batch, 0)


@every_method
def test_targets_that_are_an_array_are_refused_by_every_step(row):
    for name in WITH_TARGETS:
        with pytest.raises(
            ValueError, match=r"`y` (of a batch )?to be a tensor, but got a ndarray. Convert it with `t"
        ):
            results(row, name, X, Y.numpy())


@every_method
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32], ids=str)
def test_classes_of_any_integer_type_and_bool_are_learned_and_measured_alike(row, dtype):
    for name in WITH_TARGETS:
        assert equal(results(row, name, X, Y.to(dtype)), results(row, name, X, Y)), name


ONE_HOT = nn.functional.one_hot(Y, CLASSES)
WRONG_TARGETS = {
    "rows of one class": (Y[:, None], rf"(integer classes|integer label) .*\({B}, 1\)"),
    "rows of one-hot integers": (ONE_HOT, rf"(integer classes|integer label) .*\({B}, {CLASSES}\)"),
    "a class too many": (Y + 1, "classes from 0 to 1, for num_classes=2, but got classes from 1 to 2"),
    "a negative class": (Y - 1, "classes from 0 to 1, for num_classes=2, but got classes from -1 to 0"),
    "classes in floating point": (Y.float(), r"(integer classes|one integer label).*but got torch.float32"),
}


@every_method
@pytest.mark.parametrize("kind", WRONG_TARGETS)
def test_targets_that_are_no_classes_are_refused_by_every_step(row, kind):
    y, message = WRONG_TARGETS[kind]
    for name in WITH_TARGETS[:3]:
        with pytest.raises(ValueError, match=message):
            results(row, name, X, y)


@pytest.mark.parametrize("y", [ONE_HOT.float() * 2, torch.ones(B, CLASSES), -ONE_HOT.float()], ids=["2", "all", "-1"])
def test_rows_that_are_no_class_probabilities_are_refused_at_the_first_step(y):
    data = DataLoader(TensorDataset(X.transpose(0, 1), y), B, collate_fn=time_first)
    with pytest.raises(ValueError, match="class probabilities, at least 0 and with a sum of 1 .* but got a smallest"):
        trainer().fit(SpikingModule(METHODS[0].network(), num_classes=CLASSES, batch_first=False), data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_class_probabilities_are_trained(dtype):
    y = torch.rand(B, CLASSES).softmax(1).to(dtype)
    data = DataLoader(TensorDataset(X.transpose(0, 1), y), B, collate_fn=time_first)
    trainer().fit(SpikingModule(METHODS[0].network(), num_classes=CLASSES, batch_first=False), data)


@every_method
def test_a_class_without_a_sample_is_said_once_per_fit(row):
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES, batch_first=False)
    data = loader(X, torch.zeros_like(Y), 4)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(max_epochs=2).fit(module, data)
        said = [str(each.message) for each in caught if "No training sample has class" in str(each.message)]
        assert said == [
            "No training sample has class 1 of the 2 classes. Train on samples of each class, or count the classes "
            "again: num_classes=2"
        ]


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 1}, {"max_steps": 1}, {"overfit_batches": 1}], ids=str)
def test_classes_that_an_epoch_did_not_reach_are_not_missed(options):
    y = torch.tensor([0] * 4 + [1] * 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(**options).fit(SpikingModule(METHODS[0].network(), num_classes=CLASSES), loader(X, y, 4))
    assert not [each for each in caught if "No training sample" in str(each.message)]


@every_method
def test_predictions_keep_no_graph(row):
    module = build(row)
    for name in ("a prediction step", "predict of the method", "predict_anytime of the method"):
        found = tensors(ENTRIES[name](module, X, Y))
        assert not [value for value in found if value.requires_grad or value.grad_fn is not None], name
    if any(parameter.requires_grad for parameter in module.network.parameters()):
        assert copy.copy(run(module.network, X)).requires_grad or row.name.startswith("expectation")
