from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_snn.data import Gestures, simulated
from lightning_snn.data.simulator import Split
from tests.support.processes import PATIENCE, wait_until

# Short recordings of one person a split: 11, 22 and 22 of them, half a second of work.
TINY = {
    "time_steps": 4,
    "duration": 0.2,
    "train_subjects": 1,
    "val_subjects": 1,
    "test_subjects": 1,
    "repetitions": 1,
    "processes": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the tiny gestures."""
    path = tmp_path_factory.mktemp("gestures")
    tiny(path).prepare_data()
    return path


def tiny(folder: Path, **arguments) -> Gestures:
    return Gestures(**{**TINY, "cache_dir": str(folder), **arguments})


def ready(folder: Path, training: bool = False, **arguments) -> Gestures:
    """The data module after ``setup``, as a trainer that is or is not training has it."""
    data = tiny(folder, **arguments)
    data.setup()
    data.trainer = SimpleNamespace(training=training, current_epoch=0)  # type: ignore[assignment]
    return data


@pytest.fixture
def no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(simulated, "simulate_split", refuse)


@pytest.mark.parametrize(("size", "time_steps", "duration"), [(32, 1, 0.1), (64, 3, 0.05), (32, 40, 0.1)])
def test_batches_are_time_first_float_counts_with_integer_labels(
    size: int, time_steps: int, duration: float, tmp_path: Path
) -> None:
    data = ready(tmp_path, size=size, time_steps=time_steps, duration=duration, batch_size=8)
    for loader, split in (("val_dataloader", data.splits[1]), ("test_dataloader", data.splits[2])):
        batch = next(iter(getattr(data, loader)()))
        x, y = data.on_after_batch_transfer(batch, 0)
        assert x.shape == (data.time_steps, 8, *data.frame_shape) == (time_steps, 8, 2, size, size)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert y.tolist() == split.labels[:8].tolist()
        for sample in (0, 5):
            assert np.array_equal(x[:, sample].numpy(), split.frames(sample))
    assert x.sum() > 0


def test_every_class_has_as_many_recordings_as_people_and_repetitions_make(tmp_path: Path, monkeypatch) -> None:
    def blank(split, processes):
        return (np.zeros((4, 2, 32, 32), np.uint8) for _ in range(len(split)))

    monkeypatch.setattr(simulated, "simulate_split", blank)
    data = ready(tmp_path, train_subjects=5, repetitions=3, val_subjects=4, test_subjects=7)
    for part, count in ((data.train_set, 15), (data.val_set, 8), (data.test_set, 14)):
        assert np.bincount(part.labels, minlength=11).tolist() == [count] * 11
    assert [split.under_unseen_light.mean() for split in data.splits] == [0, 0, 0.5]


def test_a_pair_is_one_arm_and_two_directions() -> None:
    for one, other in Gestures.pairs:
        name = Gestures.class_names[one]
        assert name.endswith(" clockwise")
        assert Gestures.class_names[other] == name.replace(" clockwise", " counter-clockwise")
    assert len(Gestures.class_names) == Gestures.num_classes == 11


def test_frames_do_not_depend_on_the_number_of_processes_and_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    one, many = ready(folder), ready(tmp_path, processes=2)
    other = ready(tmp_path, seed=1)
    for name in ("train_set", "val_set", "test_set"):
        assert np.array_equal(getattr(one, name).frames, getattr(many, name).frames)
        assert not np.array_equal(getattr(one, name).frames, getattr(other, name).frames)


def test_frames_are_simulated_once_and_read_thereafter(folder: Path, no_simulation: None) -> None:
    again = ready(folder)
    assert len(again.train_set) == 11
    with pytest.raises(AssertionError, match="simulated again"):
        tiny(folder, seed=1).prepare_data()


def test_what_does_not_shape_the_frames_does_not_make_them_again(folder: Path, no_simulation: None) -> None:
    ready(folder, batch_size=3, num_workers=2, processes=5, max_shift=0, max_count=1)


def test_the_cache_is_keyed_by_everything_that_shapes_the_frames(tmp_path: Path, monkeypatch) -> None:
    paths: list[Path] = []

    def cached_rows(path: Path, *_) -> dict[str, np.ndarray]:
        paths.append(path)
        return {"frames": np.zeros(0)}

    monkeypatch.setattr(simulated, "cached_rows", cached_rows)

    def places(**arguments) -> list[Path]:
        paths.clear()
        tiny(tmp_path, **arguments).prepare_data()
        return list(paths)

    base = places()
    assert [path.name.rsplit("-", 1)[0] for path in base] == ["gestures-train", "gestures-val", "gestures-test"]
    assert places() == base
    everywhere = [{"size": 64}, {"time_steps": 5}, {"duration": 0.3}, {"seed": 1}]
    changed = [places(**arguments) for arguments in everywhere]
    for position, name in enumerate(("train_subjects", "val_subjects", "test_subjects")):
        split = places(**{name: 2})
        assert [one == two for one, two in zip(split, base, strict=True)] == [i != position for i in range(3)]
        changed.append(split)
    more = places(repetitions=2)
    assert [one == two for one, two in zip(more, base, strict=True)] == [False, True, True]
    monkeypatch.setattr(Gestures, "simulator_version", Gestures.simulator_version + 1)
    changed += [more, places()]
    assert len({path for group in [base, *changed] for path in group}) == 3 * (1 + len(everywhere) + 1) + 4


@pytest.mark.parametrize("damage", ["truncated", "junk", "missing", "zeroed"])
def test_a_damaged_cache_is_made_again(damage: str, folder: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(folder, tmp_path / "cache")
    expected = ready(cache).val_set.frames
    (file,) = cache.glob("gestures-val-*/frames.npy")
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        zeroed = whole[:5000] + bytes(len(whole) - 5000)
        file.write_bytes({"truncated": whole[:-100], "junk": b"junk" * 1000, "zeroed": zeroed}[damage])
    with pytest.warns(UserWarning, match=rf"A cache is created again. Expected {file} to be a cached uint8 array of"):
        found = ready(cache).val_set.frames
    assert np.array_equal(found, expected)
    assert file.read_bytes() == whole


def test_a_process_that_fails_leaves_no_cache_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, broken = tmp_path / "cache", tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import os\nos._exit(3)\n")
    with monkeypatch.context() as context:
        context.syspath_prepend(broken)
        with pytest.raises(RuntimeError, match="that simulates recording 0 to succeed, but got exit code 3"):
            tiny(cache, processes=2).prepare_data()
    assert list(cache.iterdir()) == []


def test_an_interruption_leaves_no_cache_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(split, processes):
        yield split.frames(0)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(simulated, "simulate_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny(tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []
    ready(tmp_path)


# No `if __name__ == "__main__"`: what starts processes by importing this file again would start them without end.
SCRIPT = f"""
import sys
from lightning_snn.data import Gestures
options = {TINY} | dict(processes=2)
Gestures(**options, cache_dir=sys.argv[1]).setup()
print("made", flush=True)
Gestures(**options | dict(train_subjects=1000), cache_dir=sys.argv[2]).prepare_data()
"""


def test_a_script_needs_no_guard_and_when_killed_leaves_no_cache_and_no_processes(folder: Path, tmp_path: Path) -> None:
    script, whole, part = tmp_path / "script.py", tmp_path / "whole", tmp_path / "part"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(whole), str(part)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n", process.communicate()
        wait_until(lambda: any(file.stat().st_size for file in part.glob(".*/frames.npy")), process)
    finally:
        process.kill()
        # The simulating processes share this pipe: it ends when the last of them has.
        process.communicate(timeout=PATIENCE)
    assert list(part.glob("gestures-*")) == []
    for name in ("train", "val", "test"):
        (expected,), (found,) = (path.glob(f"gestures-{name}-*/frames.npy") for path in (folder, whole))
        assert expected.read_bytes() == found.read_bytes()


def test_recordings_are_shifted_while_training_and_never_else(folder: Path) -> None:
    def batch(training: bool, max_shift: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        data = ready(folder, training, max_shift=max_shift, mirror=False, batch_size=11)
        loaded = next(iter(data.train_dataloader()))
        x, y = data.on_after_batch_transfer(loaded, 0)
        assert torch.equal(y, loaded.labels)
        return x, loaded.frames.transpose(0, 1).float(), y

    x, frames, _ = batch(training=True, max_shift=2)
    assert x.shape == frames.shape
    assert not torch.equal(x, frames)
    padded = nn.functional.pad(frames, (2, 2, 2, 2))
    for sample in range(11):
        windows = [padded[:, sample, :, r : r + 32, c : c + 32] for r in range(5) for c in range(5)]
        assert any(torch.equal(x[:, sample], window) for window in windows)
    for training, max_shift in ((False, 2), (True, 0)):
        x, frames, _ = batch(training, max_shift)
        assert torch.equal(x, frames)


def test_a_mirror_image_has_the_class_of_the_other_arm_and_direction(folder: Path) -> None:
    names = Gestures.class_names
    exchanged = {"right": "left", "left": "right", "clockwise": "counter-clockwise", "counter-clockwise": "clockwise"}
    for label, mirrored in enumerate(Gestures.mirrored_classes):
        assert names[mirrored] == " ".join(exchanged.get(word, word) for word in names[label].split())
    data = ready(folder, training=True, max_shift=0, batch_size=11)
    loaded = next(iter(data.train_dataloader()))
    x, y = data.on_after_batch_transfer(loaded, 0)
    frames = loaded.frames.transpose(0, 1).float()
    for sample, label in enumerate(loaded.labels.tolist()):
        mirrored = torch.equal(x[:, sample], frames[:, sample].flip(-1))
        assert mirrored != torch.equal(x[:, sample], frames[:, sample])
        assert y[sample] == (Gestures.mirrored_classes[label] if mirrored else label)
    assert (y != loaded.labels).sum() > 0


@pytest.mark.parametrize("label", [1, 3, 4])
def test_the_mirror_image_of_a_recording_is_most_like_recordings_of_its_class(label: int) -> None:
    """By where the events are (which arm) and, for circles, by the direction in which their center turns."""
    split = Split("train", 8, 1)

    def features(recordings: torch.Tensor) -> tuple[float, float]:
        column = recordings.sum((0, 1, 2, 3)) @ torch.arange(32.0) / recordings.sum()
        return float(column - 15.5), float(turning(recordings).sum())

    def recordings_of(chosen: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([split.frames(i) for i in np.flatnonzero(split.labels == chosen)])).float()

    side, turn = features(recordings_of(label).flip(-1))
    other_side, other_turn = features(recordings_of(Gestures.mirrored_classes[label]))
    assert side * other_side > 0
    assert label == 1 or turn * other_turn > 0


def test_counts_are_clipped_at_max_count_and_scaled(folder: Path) -> None:
    data = ready(folder, max_count=2, batch_size=22)
    loaded = next(iter(data.test_dataloader()))
    x, _ = data.on_after_batch_transfer(loaded, 0)
    assert loaded.frames.max() > 2
    assert torch.equal(x, loaded.frames.transpose(0, 1).clamp(max=2) / 2)


def test_all_processors_that_may_be_used_simulate_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert Gestures().processes == 3
    assert Gestures(processes=2).processes == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert Gestures().processes == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 33),
        ("time_steps", 0),
        ("time_steps", 2.0),
        ("duration", 0),
        ("duration", 1e-9),
        ("duration", "1"),
        ("train_subjects", 0),
        ("val_subjects", -1),
        ("test_subjects", 1.5),
        ("repetitions", 0),
        ("max_shift", -1),
        ("max_shift", 33),
        ("batch_size", 0),
        ("num_workers", -1),
        ("processes", 0),
        ("seed", -1),
        ("max_count", 0),
    ],
)
def test_an_argument_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{name}` .*but got {value!r}"):
        Gestures(**{name: value})  # type: ignore[arg-type]


def within_pair_accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the recordings of each pair's classes that get the higher score for the right one of the two."""
    right = []
    for one, other in Gestures.pairs:
        chosen = (labels == one) | (labels == other)
        right.append((scores[chosen, other] > scores[chosen, one]) == (labels[chosen] == other))
    return float(torch.cat(right).float().mean())


def turning(frames: torch.Tensor) -> torch.Tensor:
    """Area that the center of events sweeps out over time, positive clockwise, from frames ``(N, T, 2, H, W)``."""
    events = frames.sum(2)
    position = torch.arange(events.shape[-1], dtype=torch.float32)
    x, y = (events.sum(axis) @ position / events.sum((2, 3)) for axis in (2, 3))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "convolutional"])
def test_models_of_time_summed_frames_cannot_tell_the_directions(kind: str, tmp_path_factory) -> None:
    """They distinguish the other gestures well above chance, 1 / 11; with time, one number gives the direction."""
    folder = tmp_path_factory.getbasetemp() / "moderate"
    data = Gestures(train_subjects=32, repetitions=3, val_subjects=16, test_subjects=16, cache_dir=str(folder))
    data.setup()
    train = torch.as_tensor(data.train_set.frames).float()
    held_out = torch.cat([torch.as_tensor(part.frames).float() for part in (data.val_set, data.test_set)])
    labels = torch.cat([data.val_set.labels, data.test_set.labels])

    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(2 * 32 * 32, 11))
    if kind == "convolutional":
        network = nn.Sequential(
            *(nn.Conv2d(2, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 8 * 8, 11)),
        )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    x, y = train.sum(1).sqrt(), data.train_set.labels
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        scores = network(held_out.sum(1).sqrt())
    accuracy, within = (scores.argmax(1) == labels).float().mean(), within_pair_accuracy(scores, labels)
    print(f"{kind}: accuracy {accuracy:.3f}, within the pairs {within:.3f}")
    assert 0.4 < accuracy < 0.75
    assert within < 0.65

    turn = turning(held_out)
    signs = torch.zeros_like(scores)
    for clockwise, counter in Gestures.pairs:
        signs[:, clockwise], signs[:, counter] = turn, -turn
    assert within_pair_accuracy(signs, labels) > 0.85
