"""Batches of a SpikingModule: axes, forms that are refused, and the size of the training set."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

from lightning_snn import LIF, SpikingModule, methods, run
from lightning_snn.data import MNIST
from lightning_snn.data.fixed_batches import BatchedDataset, FixedBatches
from lightning_snn.methods import SpikingBayes, SurrogateGradient
from tests.support.training import trainer

T, B, FEATURES, CLASSES = 5, 8, 10, 3
X, Y = torch.rand(T, B, FEATURES), torch.arange(B) % CLASSES


def network(outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 16), LIF(), nn.Linear(16, outputs))


class Batches:
    """A loader of given batches."""

    def __init__(self, *batches: object) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.inner(x)
        return outputs, outputs


ONE_HOT = nn.functional.one_hot(Y, CLASSES)
BATCH_FIRST = X.transpose(0, 1)
REFUSED = {
    "a dict": ({"x": X, "y": Y}, r"`batch` to be a pair, .*but got a dict with the keys 'x', 'y'. A batch is \(x, y\)"),
    "four parts": ((X, Y, torch.full((B,), T), Y), r"`batch` to be a pair, .* got a tuple of 4.*SpikingModule.read_b"),
    "two inputs": (
        ((X, X), Y),
        r"several that the forward of Sequential takes, \(input\), but got a tuple of 2",
    ),
    "an array": ((X.numpy(), Y), r"`x` to be a tensor .* but got a ndarray"),
    "a list of classes": ((X, Y.tolist()), r"`y` of a batch to be a tensor, but got a list of 8"),
    "batch first": (
        (BATCH_FIRST, Y),
        r"Axis 0 of x has as many entries as y, so the batch is first: pass .*batch_first",
    ),
    "no time axis": ((X[0], Y), r"x of shape \(8, 10\) .* If x has no time axis, add one"),
    "too few targets": ((X, Y[:6]), r"x of shape \(5, 8, 10\) and y of shape \(6,\). A batch is"),
    "no axis of targets": ((X, Y[0]), r"y of shape \(\)"),
    "one-hot targets": ((X, ONE_HOT), r"`y` to be integer classes of shape \(8,\).*got \(8, 3\).*y.argmax\(1\)"),
    "uint8": (((X > 0.5).to(torch.uint8), Y), r"`x` in floating point, but got torch.uint8. .*on_after_batch_transfer"),
    "bool": ((X > 0.5, Y), r"`x` in floating point, but got torch.bool"),
    "float64": ((X.double(), Y), r"`x` in the dtype of the parameters, torch.float32, but got torch.float64"),
    "sparse": ((X.to_sparse(), Y), r"`x` to be dense, but got the layout torch.sparse_coo. Use `x.to_dense\(\)`"),
    "class 3 of 3": ((X, Y + 1), r"`y` to hold classes from 0 to 2, for num_classes=3, but got classes from 1 to 3"),
    "unlabeled": ((X, Y - 1), r"got classes from -1 to 1. Leave unlabeled samples out"),
}


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize("name", REFUSED)
def test_batches_of_another_form_are_refused_with_what_a_batch_is(name, stage):
    batch, message = REFUSED[name]
    module = SpikingModule(network(), num_classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        getattr(trainer(max_epochs=1), stage)(module, Batches(batch))


@pytest.mark.parametrize("method", ["SurrogateGradient", "RateBackprop", "SpikingBayes", "NoisySpikes"])
@pytest.mark.parametrize("name", ["batch first", "uint8", "one-hot targets", "class 3 of 3"])
def test_every_method_gives_the_same_message(name, method):
    batch, message = REFUSED[name]
    module = SpikingModule(network(), getattr(methods, method)(), num_classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=1).fit(module, Batches(batch))


@pytest.mark.parametrize("method", ["SurrogateGradient", "RateBackprop", "NoisySpikes"])
def test_a_network_that_returns_several_outputs_is_refused(method):
    with pytest.raises(ValueError, match=r"one tensor \[T\*B, \.\.\.\], but got a tuple|several|tuple"):
        trainer(max_epochs=1).fit(
            SpikingModule(Two(), getattr(methods, method)(), num_classes=CLASSES), Batches((X, Y))
        )


def test_another_number_of_outputs_than_classes_is_refused():
    with pytest.raises(ValueError, match=r"`network` to return 4 outputs per sample, .* shape \(8, 3\)"):
        trainer(max_epochs=1).fit(SpikingModule(network(), num_classes=4), Batches((X, Y)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64, torch.int16])
def test_classes_of_any_integer_type_are_trained_alike(dtype):
    module = SpikingModule(network(), num_classes=CLASSES)
    loss = module.method.training_step(module.network, X, Y).loss
    assert torch.equal(module.method.training_step(module.network, X, Y.to(dtype)).loss, loss)
    trainer(max_epochs=1).fit(module, Batches((X, Y.to(dtype))), Batches((X, Y.to(dtype))))


def test_class_probabilities_are_targets_of_training():
    module = SpikingModule(network(), num_classes=CLASSES)
    hard = module.method.training_step(module.network, X, Y).loss
    torch.testing.assert_close(module.method.training_step(module.network, X, ONE_HOT.double()).loss, hard)


def test_a_network_in_float64_takes_float32_as_its_values_in_float64():
    module = SpikingModule(network().double(), num_classes=CLASSES)
    loss = module.training_step((X.double(), Y), 0)
    assert loss.dtype == torch.float64
    assert torch.equal(module.training_step((X, Y), 0), loss)


def test_batch_first_gives_the_results_of_time_first():
    torch.manual_seed(0)
    plain = SpikingModule(network(), num_classes=CLASSES)
    other = SpikingModule(plain.network, num_classes=CLASSES, batch_first=True)
    assert torch.equal(other.training_step((BATCH_FIRST, Y), 0), plain.training_step((X, Y), 0))
    assert torch.equal(other.predict_step(BATCH_FIRST, 0).mean, plain.predict_step(X, 0).mean)
    assert torch.equal(other(BATCH_FIRST), plain(X).transpose(0, 1))
    results = [
        trainer().validate(m, Batches(b), verbose=False) for m, b in ((plain, (X, Y)), (other, (BATCH_FIRST, Y)))
    ]
    assert results[0] == results[1]


def test_batch_first_refuses_time_first():
    module = SpikingModule(network(), num_classes=CLASSES, batch_first=True)
    with pytest.raises(ValueError, match="Axis 1 of x has as many entries as y, so time is first: leave"):
        module.training_step((X, Y), 0)


@pytest.mark.parametrize("batch_first", [False, True])
def test_targets_per_step_follow_the_inputs(batch_first):
    module = SpikingModule(network(1), task="regression", readout=lambda outputs: outputs, batch_first=batch_first)
    x, y = torch.rand(T, B, FEATURES), torch.rand(T, B, 1)
    expected = ((run(module.network, x) - y) ** 2).mean()
    given = (x.transpose(0, 1), y.transpose(0, 1)) if batch_first else (x, y)
    torch.testing.assert_close(module.training_step(given, 0), expected)


def test_the_loss_of_an_epoch_is_a_mean_over_samples_with_targets_per_step_too():
    batches = [(torch.rand(6, size, FEATURES), scale * torch.rand(6, size, 1)) for size, scale in ((8, 1), (2, 10))]
    module = SpikingModule(
        network(1), task="regression", readout=lambda outputs: outputs, optimizer="sgd", learning_rate=1e-12
    )
    squares = torch.cat([((run(module.network, x) - y) ** 2).flatten() for x, y in batches])
    fitting = trainer(max_epochs=1)
    fitting.fit(module, Batches(*batches))
    assert fitting.callback_metrics["train/loss_epoch"].item() == pytest.approx(squares.mean().item(), rel=1e-5)


def test_as_many_steps_as_samples_are_warned_of_once():
    x, y = torch.rand(B, B, FEATURES), Y
    module = SpikingModule(network(), num_classes=CLASSES)
    with pytest.warns(UserWarning, match=r"as many time steps as samples.*batch_first=True"):
        module.training_step((x, y), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.training_step((x, y), 1)
        SpikingModule(network(), num_classes=CLASSES, batch_first=False).training_step((x, y), 0)
        SpikingModule(network(), num_classes=CLASSES).training_step((X, Y), 0)


def test_a_loader_of_a_data_module_without_it_is_refused(tmp_path):
    path = tmp_path / "digits.npz"
    images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    data = MNIST(str(path), time_steps=3, batch_size=10, val_fraction=0.25)
    data.prepare_data()
    data.setup()
    module = SpikingModule(nn.Sequential(nn.Flatten(), nn.Linear(784, 10), LIF()), num_classes=10)
    for stage in ("fit", "validate", "predict"):
        with pytest.raises(TypeError, match="Pass the data module to the trainer"):
            getattr(trainer(max_epochs=1), stage)(module, data.train_dataloader())
    trainer(max_epochs=1).fit(module, data)


def test_a_subclass_reads_batches_of_its_own():
    class Dicts(SpikingModule):
        def read_batch(self, batch):
            return super().read_batch((batch["x"], batch["y"]))

    batch = {"x": X, "y": Y}
    trainer(max_epochs=1).fit(Dicts(network(), num_classes=CLASSES), Batches(batch), Batches(batch))


class Samples(Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.rand(T, FEATURES), Y[index % B]


class Ready(Samples):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X, Y


class Stream(IterableDataset):
    """Batches without an end."""

    def __iter__(self):
        while True:
            yield X, Y


class FiniteStream(IterableDataset):
    """Three batches, whose number nobody knows."""

    def __iter__(self):
        yield from [(X, Y)] * 3


def time_first(samples: list) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples])


def batch_sampler(dataset: Dataset) -> BatchSampler:
    return BatchSampler(SequentialSampler(dataset), 8, drop_last=False)


LOADERS = {
    "samples": (lambda: DataLoader(Samples(42), 8, collate_fn=time_first), {}, 42),
    "samples, limited": (lambda: DataLoader(Samples(42), 8, collate_fn=time_first), {"limit_train_batches": 2}, 16),
    "samples, last left out": (lambda: DataLoader(Samples(42), 8, collate_fn=time_first, drop_last=True), {}, 40),
    "fewer samples than a batch": (lambda: DataLoader(Samples(5), 8, collate_fn=time_first), {}, 5),
    "ready batches": (lambda: DataLoader(Ready(3), batch_size=None), {}, 24),
    "ready batches by a collate function": (lambda: DataLoader(Ready(3), 1, collate_fn=lambda s: s[0]), {}, 24),
    "ready batches, limited": (lambda: DataLoader(Ready(3), batch_size=None), {"limit_train_batches": 2}, 16),
    "a batch sampler": (
        lambda: DataLoader(Samples(42), batch_sampler=batch_sampler(Samples(42)), collate_fn=time_first),
        {},
        42,
    ),
    "a batch sampler, limited": (
        lambda: DataLoader(Samples(42), batch_sampler=batch_sampler(Samples(42)), collate_fn=time_first),
        {"limit_train_batches": 2},
        16,
    ),
    "a stream, limited": (lambda: DataLoader(Stream(), batch_size=None), {"limit_train_batches": 4}, 32),
    "a stream": (lambda: DataLoader(Stream(), batch_size=None), {"max_steps": 3, "max_epochs": -1}, None),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_size_of_the_training_set_counts_samples(name):
    make, options, expected = LOADERS[name]
    module = SpikingModule(network(), num_classes=CLASSES)
    trainer(**({"max_epochs": 1} | options)).fit(module, make())
    assert module.method.progress.train_size == expected


def test_fixed_batches_count_samples():
    samples = TensorDataset(torch.rand(42, T, FEATURES), torch.arange(42) % CLASSES)
    batches = FixedBatches(samples, 8, 0)
    loading = DataLoader(BatchedDataset(samples), batch_size=None, sampler=batches, collate_fn=time_first)
    module = SpikingModule(network(), num_classes=CLASSES)
    trainer(max_epochs=1).fit(module, loading)
    assert module.method.progress.train_size == 42


class Notes(SurrogateGradient):
    """Surrogate gradients that note the progress of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def training_step(self, network, x, y):
        self.seen.append(self.progress)
        return super().training_step(network, x, y)


@pytest.mark.parametrize(("stream", "epochs"), [(Stream, {"max_steps": 6}), (FiniteStream, {"max_epochs": 2})], ids=str)
def test_the_progress_of_streams_counts_samples(stream, epochs):
    module = SpikingModule(network(), Notes(), num_classes=CLASSES)
    trainer(**({"max_epochs": -1} | epochs)).fit(module, DataLoader(stream(), batch_size=None))
    assert [progress.samples for progress in module.method.seen] == [0, 8, 16, 24, 32, 40]
    assert {progress.has_length for progress in module.method.seen} == {False}
    passes = [0] * 6 if stream is Stream else [0, 0, 0, 1, 1, 1]
    assert [progress.epoch for progress in module.method.seen] == passes


@pytest.mark.parametrize("stream", [Stream, FiniteStream])
def test_epochs_of_streams_are_train_size_samples_for_the_posterior(stream):
    method = SpikingBayes(train_size=16, kl_weight=1.0, warmup_epochs=2.0, mean_epochs=1.0)
    module = SpikingModule(network(), method, num_classes=CLASSES)
    factors = []

    class Factors(pl.Callback):
        def on_train_batch_end(self, *_) -> None:
            epochs = module.method.progress.samples / 16
            factors.append(module.method._kl_factor() if epochs >= 1 else None)

    trainer(Factors(), max_epochs=-1, max_steps=8).fit(module, DataLoader(stream(), batch_size=None))
    assert factors == [None, None, 0.0, 1 / 64, 2 / 64, 3 / 64, 1 / 16, 1 / 16]


def test_a_stream_without_train_size_is_refused_by_name():
    module = SpikingModule(network(), SpikingBayes(), num_classes=CLASSES)
    with pytest.raises(ValueError, match="argument `train_size` of SpikingBayes to be an integer, but got None"):
        trainer(max_epochs=-1, max_steps=2).fit(module, DataLoader(Stream(), batch_size=None))
