from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_snn.data.base import (
    EpochSampler,
    FrameDataModule,
    FrameDataset,
)
from lightning_snn.data.batches import LoadedBatch
from tests.support.training import trainer

SHAPE = (3, 2, 4, 5)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


class Toy(FrameDataModule):
    num_classes = 2
    class_names = ("a", "b")
    frame_shape = SHAPE[1:]
    time_steps = SHAPE[0]

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        # The label is the index, so that a test sees which samples a loader gave.
        return tuple(FrameDataset(frames(n, seed), np.arange(n)) for seed, n in enumerate((10, 4, 5)))  # type: ignore[return-value]


class Shifted(Toy):
    def augment(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1000, y


class Recorder(pl.LightningModule):
    """Keeps what each stage is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {
            "train": [],
            "val": [],
            "test": [],
            "predict": [],
        }

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: tuple, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: tuple, batch_idx: int) -> None:
        self.seen["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def labels(self, stage: str) -> list[int]:
        return torch.cat([y for _, y in self.seen[stage]]).tolist()


@pytest.mark.parametrize("kind", ["array", "memmap", "tensor"])
def test_a_frame_data_set_gives_the_same_samples_one_by_one_and_as_a_batch(kind: str, tmp_path) -> None:
    source = frames(6)
    stored: np.ndarray | torch.Tensor = source
    if kind == "memmap":
        np.save(tmp_path / "frames.npy", source)
        stored = np.load(tmp_path / "frames.npy", mmap_mode="r")
    elif kind == "tensor":
        stored = torch.from_numpy(source)
    dataset = FrameDataset(stored, [5, 4, 3, 2, 1, 0])
    assert len(dataset) == 6
    for (x, y), index in zip(dataset.__getitems__([4, 0]), (4, 0), strict=True):
        one, label = dataset[index]
        assert x.dtype == torch.uint8
        assert torch.equal(x, torch.from_numpy(source[index]))
        assert torch.equal(x, one)
        assert y == label == 5 - index


def test_a_frame_data_set_works_with_torch_s_own_collate_and_subset() -> None:
    dataset = FrameDataset(frames(6), range(6))
    x, y = next(iter(DataLoader(Subset(dataset, [1, 3, 5]), batch_size=3)))
    assert y.tolist() == [1, 3, 5]
    assert torch.equal(x, torch.from_numpy(frames(6)[[1, 3, 5]]))


@pytest.mark.parametrize(
    ("bad_frames", "labels", "message"),
    [
        (frames(2)[:, :, 0, 0, 0], [0, 1], r"`frames` to hold .*\(N, T, ...\) .*but got uint8 of shape \(2, 3\)"),
        (frames(2).astype(np.complex64), [0, 1], "`frames` to hold real numbers .*but got complex64"),
        (
            torch.zeros(2, 3, 4, dtype=torch.complex64),
            [0, 1],
            "`frames` to hold real numbers .* torch.complex64",
        ),
        (frames(2), [0, 1, 1], r"`labels` to be of shape \(2,\).*but got \(3,\)"),
        (frames(2), [[0, 1], [1, 0]], r"`labels` to be of shape \(2,\).*but got \(2, 2\). Of one-hot .*argmax"),
        (frames(2), [0, -1], "`labels` to hold classes from 0, but got -1"),
        (frames(2), [0.0, np.nan], "`labels` to hold integers or finite floats, but got float64 with NaN"),
        (frames(2), ["a", "b"], "`labels` to hold integers or finite floats, but got <U1"),
    ],
)
def test_a_frame_data_set_refuses_what_it_cannot_serve(bad_frames, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        FrameDataset(bad_frames, labels)


@pytest.mark.parametrize("name", ["num_classes", "class_names", "frame_shape", "time_steps"])
def test_a_data_module_without_a_fact_says_which_when_it_is_read(name: str) -> None:
    facts = {key: value for key, value in vars(Toy).items() if not key.startswith("__") and key != name}
    module = type("Own", (FrameDataModule,), facts)()
    message = f"Expected Own to have `{name}`: .* Set it in the class or in its `__init__`"
    with pytest.raises(AttributeError, match=message):
        getattr(module, name)
    assert not hasattr(module, "anything_else")


def test_a_batch_is_time_first_float_with_integer_labels() -> None:
    module = Toy(batch_size=4)
    module.setup()
    loaded = next(iter(module.val_dataloader()))
    assert loaded.frames.dtype == torch.uint8
    x, y = module.on_after_batch_transfer(loaded, 0)
    assert x.shape == (3, 4, 2, 4, 5)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, torch.from_numpy(frames(4, seed=1)).transpose(0, 1).float())


def test_a_batch_is_converted_once_only() -> None:
    module = Toy(batch_size=3, max_count=7)
    module.setup()
    once = module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)
    twice = module.on_after_batch_transfer(once, 0)
    assert twice is once
    assert not isinstance(once, LoadedBatch)


def test_counts_are_clipped_at_and_divided_by_max_count() -> None:
    module = Toy(max_count=4)
    counts = torch.tensor([0, 1, 4, 5, 255], dtype=torch.uint8).view(1, 5, 1, 1, 1)
    assert module.preprocess(counts).flatten().tolist() == [0, 0.25, 1, 1, 1]
    assert Toy().preprocess(counts).flatten().tolist() == [0, 1, 4, 5, 255]


def test_every_sample_is_served_once_an_epoch_and_the_last_batch_is_kept() -> None:
    module = Toy(batch_size=4)
    module.setup()
    batches = list(module.train_dataloader())
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(10))
    for loader, size in ((module.val_dataloader(), 4), (module.test_dataloader(), 5), (module.predict_dataloader(), 5)):
        assert torch.cat([batch.labels for batch in loader]).tolist() == list(range(size))


def test_the_order_is_keyed_by_seed_and_epoch_and_not_by_the_global_generator() -> None:
    dataset = TensorDataset(torch.arange(50))

    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(np.random.randint(1000))
        sampler = EpochSampler(dataset, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    orders = [order(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert orders == [order(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(indices) == list(range(50)) for indices in orders)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    batches = []
    for num_workers in (0, 2):
        module = Toy(batch_size=3, num_workers=num_workers)
        module.setup()
        batches.append(list(module.train_dataloader()))
    assert len(batches[0]) == len(batches[1]) == 4
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.frames, two.frames)
        assert torch.equal(one.labels, two.labels)


def test_the_trainer_gives_each_epoch_its_own_order_and_a_resumed_run_the_same_one(tmp_path) -> None:
    whole = Recorder()
    trainer(max_epochs=2).fit(whole, Toy(batch_size=10))
    first, second = whole.labels("train")[:10], whole.labels("train")[10:]
    assert first != second

    begun = trainer(max_epochs=1)
    begun.fit(Recorder(), Toy(batch_size=10))
    begun.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Recorder()
    torch.manual_seed(123)
    trainer(max_epochs=2).fit(resumed, Toy(batch_size=10), ckpt_path=tmp_path / "one.ckpt")
    assert resumed.labels("train") == second


@pytest.mark.parametrize("options", [{}, {"fixed_batches": True}, {"num_workers": 1}])
def test_a_run_stopped_within_an_epoch_resumes_with_the_next_batch(tmp_path, options) -> None:
    class SaveWithinEpoch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "six.ckpt")

    whole, resumed = Recorder(), Recorder()
    trainer(SaveWithinEpoch(), max_epochs=3).fit(whole, Toy(batch_size=3, **options))
    trainer(max_epochs=3).fit(resumed, Toy(batch_size=3, **options), ckpt_path=tmp_path / "six.ckpt")
    batches = [y.tolist() for _, y in whole.seen["train"]]
    assert len(batches) == 12
    assert [y.tolist() for _, y in resumed.seen["train"]] == batches[6:]


def test_augmentation_is_applied_while_training_and_never_else() -> None:
    model, module, run = Recorder(), Shifted(batch_size=5), trainer(max_epochs=1, num_sanity_val_steps=1)
    run.fit(model, module)
    run.validate(model, module, verbose=False)
    run.test(model, module, verbose=False)
    run.predict(model, module)
    assert all(x.min() >= 1000 for x, _ in model.seen["train"])
    for stage in ("val", "test", "predict"):
        assert model.seen[stage]
        assert all(x.max() <= 255 and x.shape[0] == 3 for x, _ in model.seen[stage])


def test_a_loader_before_setup_and_an_empty_set_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Expected `setup` of Toy to be called"):
        Toy().train_dataloader()

    class Empty(Toy):
        def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
            train, val, _ = super().load_sets()
            return train, val, FrameDataset(frames(0), [])

    with pytest.raises(ValueError, match="test set of Empty to hold samples"):
        Empty().setup()
    with pytest.raises(NotImplementedError, match="must implement `load_sets`"):
        FrameDataModule().setup()


def test_the_sets_are_loaded_once_over_all_stages() -> None:
    module = Toy()
    module.setup("fit")
    train = module.train_set
    module.setup("test")
    assert module.train_set is train


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("batch_size", 1.5), ("num_workers", -1), ("seed", -1), ("seed", None), ("max_count", 0)],
)
def test_an_argument_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{name}` .*but got {value}"):
        Toy(**{name: value})  # type: ignore[arg-type]
