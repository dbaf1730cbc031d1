"""Augmentation of recordings of events, alone and in data modules."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from lightning_snn.data.augmentation import EventAugmentation, keyed_seed
from lightning_snn.data.base import FrameDataModule, FrameDataset
from tests.support.training import trainer

SHAPE = (5, 2, 6, 7)
MIRRORED = (0, 2, 1)


def recordings(count: int, seed: int = 0, mean: float = 1.0) -> torch.Tensor:
    """Counts ``(N, T, C, H, W)`` of Poisson events."""
    return torch.from_numpy(np.random.default_rng(seed).poisson(mean, (count, *SHAPE)).astype(np.uint8))


def keys(count: int) -> list[tuple[int, int, int]]:
    return [(0, 0, index) for index in range(count)]


def augmented(frames: torch.Tensor, **options) -> torch.Tensor:
    labels = torch.zeros(len(frames), dtype=torch.long)
    return EventAugmentation(**options)(frames, labels, keys(len(frames)))[0]


def test_a_recording_becomes_one_window_of_its_padded_self_and_its_label_that_of_the_mirror_image() -> None:
    frames, labels = recordings(400), torch.arange(400) % 3
    before = frames.clone()
    moved, classes = EventAugmentation(max_shift=2, mirrored_classes=MIRRORED)(frames, labels, keys(400))
    assert torch.equal(frames, before)
    assert moved.dtype == torch.uint8
    found = set()
    padded = np.pad(frames.numpy(), ((0, 0), (0, 0), (0, 0), (2, 2), (2, 2)))
    for sample in range(400):
        matches = []
        for row, column, mirrored in product(range(5), range(5), (False, True)):
            # mirrored first, then shifted
            image = padded[sample, ..., ::-1] if mirrored else padded[sample]
            if np.array_equal(image[..., row : row + 6, column : column + 7], moved[sample].numpy()):
                matches.append((row, column, mirrored))
        assert len(matches) == 1
        label = int(labels[sample])
        assert classes[sample] == (MIRRORED[label] if matches[0][2] else label)
        found.add(matches[0])
    # Of 50 equally likely outcomes, 400 draws miss one with probability 0.015; the seed is fixed.
    assert len(found) == 50


@pytest.mark.parametrize(
    ("shape", "moving"), [((4, 2, 1, 9), (4,)), ((4, 2, 9, 1), (3,)), ((4, 2, 9), (3,)), ((4, 9), (2,))]
)
def test_an_axis_of_one_cell_and_a_channel_axis_are_not_shifted(shape: tuple[int, ...], moving: tuple[int]) -> None:
    frames = torch.zeros(60, *shape)
    frames.movedim(moving[0], 0)[4] = 1
    moved, _ = EventAugmentation(max_shift=3)(frames, torch.zeros(60), keys(60))
    where = moved.movedim(moving[0], 0).flatten(2)
    position = where[..., 0].argmax(0)
    assert set(position.tolist()) == set(range(1, 8))
    assert torch.equal(moved.sum(moving[0]), frames.sum(moving[0]))


def test_dropped_events_are_a_share_of_each_recording_and_no_event_is_added() -> None:
    frames = recordings(300, mean=3.0)
    kept = augmented(frames, drop_events=0.4)
    assert (kept <= frames).all()
    shares = kept.sum((1, 2, 3, 4)).double() / frames.sum((1, 2, 3, 4))
    # uniform from 0.6 to 1, up to the noise of 1,260 events, 0.014 at most
    assert shares.min() > 0.6 - 0.05
    assert shares.mean() == pytest.approx(0.8, abs=4 * 0.4 / 12**0.5 / 300**0.5)
    assert shares.std() == pytest.approx(0.4 / 12**0.5, rel=0.1)
    # each event alike: the share does not depend on the cell's count
    few, many = frames == 1, frames >= 5
    assert kept[few].sum() / frames[few].sum() == pytest.approx(float(kept[many].sum() / frames[many].sum()), abs=0.02)
    assert augmented(frames, drop_events=1.0).sum() < frames.sum()


def test_jitter_moves_a_share_of_the_events_by_one_frame_and_keeps_all() -> None:
    frames = torch.zeros(200, 5, 1, 4, 4, dtype=torch.uint8)
    frames[:, 2] = 100
    moved = augmented(frames, time_jitter=0.3)
    assert torch.equal(moved.sum(1), frames.sum(1)), "no event changes its cell or is lost"
    share = moved.double().sum((0, 2, 3, 4)) / frames.sum()
    # of 320,000 events, 0.15 of standard error 0.0006 in each neighbor
    assert share.tolist() == pytest.approx([0, 0.15, 0.7, 0.15, 0], abs=0.003)
    edge = torch.zeros_like(frames)
    edge[:, 0] = 100
    share = augmented(edge, time_jitter=0.3).double().sum((0, 2, 3, 4)) / edge.sum()
    assert share.tolist() == pytest.approx([0.85, 0.15, 0, 0, 0], abs=0.003)


def test_noise_adds_events_evenly_in_proportion_to_a_recording_s_own() -> None:
    frames = recordings(400, mean=2.0)
    noisy = augmented(frames, noise_events=0.5)
    added = noisy.int() - frames.int()
    assert (added >= 0).all()
    shares = added.sum((1, 2, 3, 4)).double() / frames.sum((1, 2, 3, 4))
    assert shares.mean() == pytest.approx(0.25, abs=4 * 0.5 / 12**0.5 / 400**0.5)
    assert shares.std() == pytest.approx(0.5 / 12**0.5, rel=0.1)
    for axis in range(4):
        others = [dim for dim in range(5) if dim != axis + 1]
        per_cell = added.sum(others).double()
        expected = added.sum() / SHAPE[axis]
        # the numbers of events per cell are Poisson; 4.5 standard errors
        assert ((per_cell - expected).abs() < 4.5 * expected**0.5).all()


def test_counts_saturate_instead_of_wrapping_around() -> None:
    frames = torch.full((3, *SHAPE), 255, dtype=torch.uint8)
    assert (augmented(frames, noise_events=1.0) == 255).all()


ALL = {"max_shift": 2, "time_jitter": 0.2, "drop_events": 0.3, "noise_events": 0.2, "mirrored_classes": MIRRORED}


def test_a_sample_depends_on_its_key_alone() -> None:
    frames, labels = recordings(6), torch.arange(6) % 3
    augmentation = EventAugmentation(**ALL)
    np.random.seed(1)
    torch.manual_seed(1)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole, classes = augmentation(frames, labels, keys(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)
    order = [4, 0, 3]
    part, their = augmentation(frames[order], labels[order], [keys(6)[index] for index in order])
    assert torch.equal(part, whole[order])
    assert torch.equal(their, classes[order])
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        changed, _ = augmentation(frames[:1], labels[:1], [other])
        assert not torch.equal(changed[0], whole[0])


def test_keyed_seeds_differ_and_are_the_same_on_every_machine() -> None:
    assert keyed_seed(0, 1, 2) == int(np.random.SeedSequence([0, 1, 2]).generate_state(1, np.uint64)[0]) // 2
    assert len({keyed_seed(*key) for key in product(range(5), repeat=3)}) == 125


def test_an_augmentation_is_true_only_if_it_changes_something() -> None:
    assert not EventAugmentation()
    assert all(EventAugmentation(**{name: value}) for name, value in ALL.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_shift": -1}, "`max_shift` to be an integer of at least 0, but got -1"),
        ({"time_jitter": 1.5}, "`time_jitter` to be a number from 0 to 1, but got 1.5"),
        ({"drop_events": -0.1}, "`drop_events` to be a number from 0 to 1, but got -0.1"),
        ({"noise_events": -1}, "`noise_events` to be a finite number of at least 0, but got -1"),
        (
            {"mirrored_classes": (1, 2, 0)},
            r"`mirrored_classes` .*whose mirror image is the class itself, .*\[1, 2, 0\]",
        ),
        ({"mirrored_classes": (0, 3)}, r"`mirrored_classes` .*but got \[0, 3\]"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventAugmentation(**options)


def test_frames_and_labels_that_do_not_suit_are_refused() -> None:
    frames, labels = recordings(2).float() + 0.5, torch.zeros(2, dtype=torch.long)
    for name in ("time_jitter", "drop_events", "noise_events"):
        with pytest.raises(ValueError, match=r"integer counts for arguments .*but got torch.float32"):
            EventAugmentation(**{name: 0.5})(frames, labels, keys(2))
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) that are classes, .*torch.float32 of shape \(2, 3\)"):
        EventAugmentation(mirrored_classes=MIRRORED)(frames, torch.zeros(2, 3), keys(2))
    with pytest.raises(ValueError, match=r"frames of shape \(B, T, ..., W\), .*\(2, 5\)"):
        EventAugmentation(max_shift=1)(frames[:, :, 0, 0, 0], labels, keys(2))


class Events(FrameDataModule):
    num_classes = 3
    class_names = ("a", "b", "c")
    frame_shape = SHAPE[1:]
    time_steps = SHAPE[0]
    mirrored_classes = MIRRORED

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        return tuple(FrameDataset(recordings(n, seed), np.arange(n) % 3) for seed, n in enumerate((23, 4, 5)))  # type: ignore[return-value]


OPTIONS = {"max_shift": 2, "time_jitter": 0.2, "drop_events": 0.3, "noise_events": 0.2, "mirror": True}


class Recorder(pl.LightningModule):
    """Keeps the batches of training and validation."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.folder = folder
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.validated: list[torch.Tensor] = []

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.layer(torch.rand(1, 1)).sum()

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        self.validated.append(batch[0])

    def on_train_end(self) -> None:
        if self.folder is not None:
            torch.save(self.samples(), self.folder / f"{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def samples(self) -> list[torch.Tensor]:
        """All training samples ``(T, C, H, W)``."""
        return [sample.clone() for x, _ in self.seen for sample in x.unbind(1)]


def fitted(data: FrameDataModule, epochs: int = 2, **options) -> Recorder:
    model = Recorder()
    trainer(max_epochs=epochs, **options).fit(model, data)
    return model


def assert_equal_batches(one: Recorder, other: Recorder) -> None:
    assert len(one.seen) == len(other.seen) > 0
    for (x, y), (again, labels) in zip(one.seen, other.seen, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


def test_training_samples_are_augmented_anew_in_each_epoch_and_others_never() -> None:
    model = fitted(Events(batch_size=23, **OPTIONS))
    (first, _), (second, _) = model.seen
    assert not any(torch.equal(one, other) for one in first.unbind(1) for other in second.unbind(1))
    assert all(torch.equal(x, recordings(4, 1).transpose(0, 1).float()) for x in model.validated)
    assert fitted(Events(batch_size=23)).seen[0][0].sum() == recordings(23).sum(), "nothing changes by default"


def test_batches_follow_the_seed_and_not_the_workers_or_the_global_generators() -> None:
    reference = fitted(Events(batch_size=5, **OPTIONS))
    torch.manual_seed(5)
    assert_equal_batches(fitted(Events(batch_size=5, num_workers=2, **OPTIONS)), reference)
    assert not torch.equal(fitted(Events(batch_size=5, seed=1, **OPTIONS)).seen[0][0], reference.seen[0][0])


def test_a_sample_is_augmented_alike_in_batches_of_any_size() -> None:
    small, large = fitted(Events(batch_size=1, **OPTIONS)), fitted(Events(batch_size=23, **OPTIONS))
    assert all(torch.equal(one, other) for one, other in zip(small.samples(), large.samples(), strict=True))


def test_fixed_batches_are_augmented_too() -> None:
    fixed = fitted(Events(batch_size=5, fixed_batches=True, **OPTIONS), epochs=1)
    plain = fitted(Events(batch_size=5, **OPTIONS), epochs=1)
    assert {sample.numpy().tobytes() for sample in fixed.samples()} == {
        sample.numpy().tobytes() for sample in plain.samples()
    }


class Blurred(Events):
    """A data module with a random augmentation of its own."""

    def augment(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + torch.rand_like(x), y


@pytest.mark.parametrize("kind", [Events, Blurred])
def test_a_run_stopped_within_an_epoch_resumes_with_the_same_augmented_batches(kind, tmp_path: Path) -> None:
    class SaveWithinEpoch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "seven.ckpt")

    whole, resumed = Recorder(), Recorder()
    trainer(SaveWithinEpoch(), max_epochs=3).fit(whole, kind(batch_size=5, **OPTIONS))
    torch.manual_seed(99)
    fitting = trainer(max_epochs=3)
    fitting.fit(resumed, kind(batch_size=5, **OPTIONS), ckpt_path=tmp_path / "seven.ckpt")
    whole.seen = whole.seen[7:]
    assert_equal_batches(resumed, whole)


def test_an_augmentation_of_a_subclass_leaves_the_global_generator_alone() -> None:
    def draws(kind: type[FrameDataModule]) -> torch.Tensor:
        torch.manual_seed(3)
        fitted(kind(batch_size=5))
        return torch.rand(4)

    assert torch.equal(draws(Blurred), draws(Events))


@pytest.mark.slow  # two processes start
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_augment_the_samples_like_one(tmp_path: Path) -> None:
    data = {"batch_size": 5, **OPTIONS}
    trainer(max_epochs=2, devices=2, strategy="ddp_spawn").fit(Recorder(tmp_path), Events(**data))
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = fitted(Events(**data)).samples()
    found = {sample.numpy().tobytes() for own in both for sample in own}
    # 23 samples are dealt out to two processes as 24, of which one is the copy of another
    assert found == {sample.numpy().tobytes() for sample in expected}


def test_users_own_data_are_mirrored_only_with_the_classes_of_the_mirror_images() -> None:
    class Own(Events):
        mirrored_classes = None

    with pytest.raises(ValueError, match="`mirror` .*of Own, which declares no `mirrored_classes`, but got True"):
        Own(mirror=True)
    assert Own(mirror=range(3)).event_augmentation.mirrored_classes == (0, 1, 2)
    with pytest.raises(ValueError, match=r"`mirror` to hold 3 classes, one per class, but got \(0, 1\)"):
        Own(mirror=[0, 1]).setup()
    with pytest.raises(ValueError, match="`max_shift` to be a number from 0 to 7, but got 8"):
        Own(max_shift=8).setup()


def test_a_batch_without_indices_is_refused_instead_of_augmented_by_chance() -> None:
    class OwnLoader(Events):
        def train_dataloader(self):
            return self.val_dataloader()

    with pytest.raises(ValueError, match="whose samples carry their indices"):
        fitted(OwnLoader(max_shift=1))
    fitted(OwnLoader())


def test_data_of_any_rank_and_type_pass_without_augmentation() -> None:
    class Rows(Events):
        frame_shape = (4,)

        def load_sets(self):
            return (TensorDataset(torch.rand(6, 3, 4), torch.rand(6, 1)),) * 3

    x, y = fitted(Rows(batch_size=6)).seen[0]
    assert x.shape == (3, 6, 4)
    assert y.dtype == torch.float32
