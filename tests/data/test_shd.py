from __future__ import annotations

import gzip
import logging
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_snn.data import SHD, SSC, shd, shd_check
from lightning_snn.data.base import FrameDataset
from lightning_snn.data.batches import LoadedBatch
from lightning_snn.data.shd_files import DIGITS, SHDFile

TRAIN_SPEAKERS = (0, 1, 2, 3, 6, 7, 8, 9, 10, 11)


class Spoken(NamedTuple):
    """A recording as the published files hold it."""

    times: np.ndarray
    units: np.ndarray
    label: int
    speaker: int


def speak(count: int, speakers: Sequence[int], seed: int, spikes: int = 300, longest: float = 0.95) -> list[Spoken]:
    """Recordings of different lengths, classes and speakers in turn."""
    rng = np.random.default_rng(seed)
    recordings = []
    for index in range(count):
        size = int(rng.integers(spikes // 2, spikes))
        times = np.sort(rng.uniform(0, longest, size)).astype(np.float16)
        units = rng.integers(0, 700, size).astype(np.uint16)
        recordings.append(Spoken(times, units, index % 20, speakers[index % len(speakers)]))
    return recordings


def write(path: Path, recordings: Sequence[Spoken], keys: int = 20) -> None:
    """A file in the layout of the published ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        times = file.create_dataset("spikes/times", (len(recordings),), h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", (len(recordings),), h5py.vlen_dtype(np.uint16))
        for index, recording in enumerate(recordings):
            times[index], units[index] = recording.times, recording.units
        file["labels"] = np.array([recording.label for recording in recordings], np.uint16)
        file["extra/speaker"] = np.array([recording.speaker for recording in recordings], np.uint16)
        file["extra/keys"] = np.array([f"key{index}" for index in range(keys)], "S10")
        file["extra/meta_info/age"] = np.full(12, 30, np.uint16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "set" / "shd_train.h5", speak(60, TRAIN_SPEAKERS, seed=1))
    write(tmp_path / "set" / "shd_test.h5", speak(20, (4, 5, 0), seed=2))
    return tmp_path / "set"


@pytest.fixture
def checked() -> None:
    """Let a process of its own read each file first, as users have it."""


@pytest.fixture(autouse=True)
def _without_a_process_per_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "checked" not in request.fixturenames:
        monkeypatch.setattr(shd, "check_readable", lambda path: None)


def module(root: Path, **arguments: Any) -> SHD:
    return SHD(str(root), cache_dir=str(root.parent / "cache"), **arguments)


def first_batch(data: SHD) -> tuple[torch.Tensor, torch.Tensor]:
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def binned(recording: Spoken, time_steps: int, duration: float, channels: int) -> np.ndarray:
    """The reference: spike by spike, in Python's numbers."""
    counts = np.zeros((time_steps, channels), np.int64)
    for time, unit in zip(recording.times.tolist(), recording.units.tolist(), strict=True):
        if time < duration:
            counts[int(time * time_steps / duration), unit * channels // 700] += 1
    return counts


@pytest.mark.parametrize(("time_steps", "duration", "channels"), [(100, 1.0, 140), (7, 0.6, 700), (140, 1.4, 10)])
def test_spikes_land_in_their_bins(root: Path, time_steps: int, duration: float, channels: int) -> None:
    recordings = speak(20, (4, 5), seed=3, spikes=2000, longest=1.37)
    write(root / "shd_test.h5", recordings)
    data = module(root, time_steps=time_steps, duration=duration, channels=channels)
    data.setup()
    x, y = first_batch(data)
    assert x.shape == (time_steps, 20, *data.frame_shape) == (data.time_steps, 20, channels)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.tolist() == [recording.label for recording in recordings]
    for index, recording in enumerate(recordings):
        assert np.array_equal(x[:, index].numpy(), binned(recording, time_steps, duration, channels))


def test_times_are_binned_as_float64_at_the_edges_of_bins(root: Path) -> None:
    """Every float16 in [0, 1) once: the bin is exact, which float16 arithmetic misses."""
    times = np.arange(np.float16(1).view(np.uint16), dtype=np.uint16).view(np.float16)
    recording = Spoken(times, np.arange(len(times), dtype=np.uint16) % 700, 3, 4)
    write(root / "shd_test.h5", [recording])
    data = module(root, channels=700)
    data.setup()
    x, _ = first_batch(data)
    # exact: a float16 below 1 is an integer over 2**24
    exact = [int(time * 2**24) * 100 >> 24 for time in times.astype(np.float64).tolist()]
    expected = np.zeros((100, 700), np.int64)
    np.add.at(expected, (exact, recording.units), 1)
    assert np.array_equal(x[:, 0].numpy(), np.minimum(expected, 255))
    careless = (times * np.float16(100)).astype(np.int64)
    assert (careless != exact).any(), "the negative control finds no time that float16 arithmetic puts elsewhere"


def test_spikes_after_the_duration_are_left_out_and_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    recordings = speak(20, (4, 5), seed=3, longest=1.37)
    # the duration itself is the first moment that is not covered
    recordings[0] = Spoken(np.array([0.5, 1.0, 1.25], np.float16), np.array([0, 1, 2], np.uint16), 0, 4)
    write(root / "shd_test.h5", recordings)
    late = sum(int((recording.times.astype(np.float64) >= 1).sum()) for recording in recordings)
    data = module(root)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        data.setup()
    x, _ = first_batch(data)
    assert data.left_out == {"train": 0, "test": late}
    assert x[:, 0].sum() == 1
    assert x.sum() == sum(len(recording.times) for recording in recordings) - late
    assert f"1 s or later are left out: 0 in shd_train.h5 and {late} in shd_test.h5" in caplog.text


def test_batches_hold_the_length_of_each_recording_when_asked(root: Path) -> None:
    recordings = [
        Spoken(np.array([0.02, last], np.float16), np.array([3, 4], np.uint16), 0, 4) for last in (0.055, 0.5, 1.2)
    ]
    write(root / "shd_test.h5", recordings)
    data = module(root, lengths=True)
    data.setup()
    x, _, lengths = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    # bins of 10 ms; the last spike of the third recording is left out
    assert lengths.tolist() == [6, 51, 3]
    assert x.shape == (100, 3, 140)


def test_a_longer_duration_keeps_every_spike_and_says_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    recordings = speak(20, (4, 5), seed=3, longest=1.37)
    write(root / "shd_test.h5", recordings)
    data = module(root, duration=1.4, time_steps=140)
    with caplog.at_level(logging.INFO):
        data.setup()
    assert data.left_out == {"train": 0, "test": 0}
    assert first_batch(data)[0].sum() == sum(len(recording.times) for recording in recordings)
    assert "left out" not in caplog.text


def test_the_validation_set_takes_whole_speakers(root: Path) -> None:
    data = module(root, val_speakers=[0, 7])
    data.prepare_data()
    data.setup()
    recordings = speak(60, TRAIN_SPEAKERS, seed=1)
    sets = {"train": data.train_set, "val": data.val_set}
    speakers = {name: {recordings[index].speaker for index in part.indices} for name, part in sets.items()}
    assert speakers == {"train": set(TRAIN_SPEAKERS) - {0, 7}, "val": {0, 7}}
    assert sorted([*data.train_set.indices, *data.val_set.indices]) == list(range(60))
    for part in sets.values():
        for index, (counts, label) in zip(part.indices, part, strict=True):
            assert label == recordings[index].label
            assert np.array_equal(counts[:, 0, 0].numpy(), binned(recordings[index], 100, 1.0, 140))


def test_the_default_validates_on_two_speakers_of_the_training_file(root: Path) -> None:
    for seed in (0, 1):
        data = module(root, seed=seed)
        data.setup()
        speakers = np.array([recording.speaker for recording in speak(60, TRAIN_SPEAKERS, seed=1)])
        assert set(speakers[data.val_set.indices]) == {10, 11}
        assert not set(speakers[data.train_set.indices]) & {4, 5, 10, 11}


@pytest.mark.parametrize("chosen", [(4,), (0, 5), TRAIN_SPEAKERS])
def test_validation_speakers_who_are_not_there_or_are_all_there_is_are_refused(
    root: Path, chosen: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"`val_speakers` to be some, but not all, of the speakers \[0, 1, .*but got"):
        module(root, val_speakers=chosen).setup()


def test_the_classes_are_the_english_and_the_german_digits() -> None:
    assert len(SHD.class_names) == len(set(SHD.class_names)) == SHD.num_classes == 20
    assert (SHD.class_names[3], SHD.class_names[13]) == ("three", "drei")


def test_training_batches_are_shifted_along_the_channels_by_each_recordings_own_draw(root: Path) -> None:
    data = module(root, max_shift=3)
    data.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.training = True

    def shifted(counts: torch.Tensor) -> torch.Tensor:
        batch = LoadedBatch(counts[:, :, None, None], torch.arange(200), tuple(range(200)))
        x, labels = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(labels, torch.arange(200))
        return x

    counts = torch.zeros(200, 4, 140, dtype=torch.uint8)
    counts[:, :, 70] = 1 + torch.arange(4)
    x = shifted(counts)
    where = x.argmax(2)
    assert (where == where[0]).all(), "all steps of a recording move alike"
    assert set(where[0].tolist()) == set(range(67, 74))
    assert torch.equal(x.sum(2), counts.sum(2).T)
    counts = torch.zeros(200, 1, 140, dtype=torch.uint8)
    counts[:, :, [0, -1]] = 1
    lost = shifted(counts).sum(2)
    assert set(lost.flatten().tolist()) == {1.0, 2.0}, "what leaves at one end does not come in at the other"


def test_only_training_batches_are_shifted(root: Path) -> None:
    data = module(root, max_shift=20)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, LoadedBatch)
    plain = data.on_after_batch_transfer(batch, 0)[0]
    data.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], plain)
    data.trainer.training = True
    assert not torch.equal(data.on_after_batch_transfer(batch, 0)[0], plain)


def test_counts_are_scaled_by_the_largest_one_asked_for(root: Path) -> None:
    plain, scaled = module(root, time_steps=5), module(root, time_steps=5, max_count=2)
    for data in (plain, scaled):
        data.setup()
    x = first_batch(plain)[0]
    assert x.max() > 2
    assert torch.equal(first_batch(scaled)[0], x.clamp(max=2) / 2)


def test_the_cache_follows_the_parameters_and_the_files(
    root: Path, checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = root.parent / "cache" / "shd"
    module(root).setup()
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(SHDFile, "__init__", lambda *_: pytest.fail("the files are read again"))
        data = module(root, seed=5, val_speakers=[2], max_count=3, max_shift=4, batch_size=2)
        data.setup()
    assert isinstance(data.test_set, FrameDataset)
    assert isinstance(data.test_set.frames.base, np.memmap)
    for parameters in ({"time_steps": 50}, {"duration": 0.5}, {"channels": 70}):
        module(root, **parameters).setup()
    assert len(list(cache.iterdir())) == 8
    write(root / "shd_test.h5", speak(30, (4, 5), seed=9))
    data = module(root)
    data.setup()
    assert len(list(cache.iterdir())) == 9
    assert len(data.test_set) == 30


def test_the_parent_of_the_set_is_accepted(root: Path) -> None:
    root.rename(root.parent / "SHD")
    assert DIGITS.find(root.parent)["test"] == root.parent / "SHD" / "shd_test.h5"


def test_without_a_root_the_error_says_where_the_files_come_from() -> None:
    with pytest.raises(ValueError, match="`root` to be a folder, but got None") as error:
        SHD()
    for part in ("zenkelab.org/resources", "shd_train.h5", "shd_test.h5", "gunzip", "CC BY 4.0", "downloads nothing"):
        assert part in str(error.value)


@pytest.mark.parametrize("missing", ["root", "shd_train.h5", "shd_test.h5"])
def test_a_missing_file_is_named_with_where_it_comes_from(root: Path, missing: str) -> None:
    if missing == "root":
        shutil.rmtree(root)
    else:
        (root / missing).unlink()
    expected = "shd_train.h5, but .* is not a folder" if missing == "root" else f"{missing}, but it is missing"
    with pytest.raises(FileNotFoundError, match=f"{expected}.*zenkelab.org.*CC BY 4.0.*gunzip"):
        module(root).setup()


def test_a_packed_file_is_to_be_unpacked(root: Path) -> None:
    path = root / "shd_test.h5"
    (root / "shd_test.h5.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"only shd_test.h5.gz exists. Unpack it with gunzip .*\.gz"):
        module(root).setup()


def damage(path: Path, name: str, values: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_recording(times: Any, units: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        recordings = speak(20, (4, 5), seed=2)
        recordings[7] = Spoken(np.asarray(times, np.float16), np.asarray(units, np.uint16), 7, 4)
        write(path, recordings)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"not a file of ours"), "shd_test.h5 to be an HDF5 file"),
        (lambda path: damage(path, "spikes/units", None), "shd_test.h5 to hold .*but spikes/units is missing"),
        (lambda path: damage(path, "extra", None), "but extra/speaker is missing"),
        (lambda path: damage(path, "labels", np.arange(19)), "entry per recording, but got 19 labels, 20 spikes/times"),
        (lambda path: damage(path, "extra/speaker", np.arange(21)), "20 spikes/units, 21 extra/speaker"),
        (lambda path: damage(path, "labels", np.arange(1, 21)), r"labels .* to be in \[0, 20\), but .* from 1 to 20"),
        (lambda path: damage(path, "labels", np.arange(20.0)), "labels .* to be one integer per recording, .*float64"),
        (lambda path: write(path, speak(20, (4, 5), seed=2), keys=35), "name 20 classes in extra/keys, but got 35"),
        (with_recording([0.1, 0.2], [3, 700]), r"recording 7 .*units in \[0, 700\), but got units from 3 to 700"),
        (with_recording([0.1, 0.2], [3]), r"recording 7 .*equally many times .* and units .*\(2,\) and .*\(1,\)"),
        (with_recording([-0.1, 0.2], [3, 4]), "recording 7 .*times in seconds, from 0 to 5"),
        (with_recording([0.1, np.nan], [3, 4]), "recording 7 .*times in seconds"),
        (with_recording([100.0, 900.0], [3, 4]), "recording 7 .*times in seconds, .* from 100.0 to 900.0"),
    ],
)
def test_a_damaged_or_other_file_is_named_and_leaves_no_cache(
    root: Path, change: Callable[[Path], None], message: str
) -> None:
    change(root / "shd_test.h5")
    with pytest.raises(ValueError, match=message) as error:
        module(root).setup()
    assert "shd_test.h5" in str(error.value)
    assert [path.name[:5] for path in (root.parent / "cache" / "shd").iterdir()] == ["train"]


def test_a_truncated_file_is_named_after_another_process_has_read_it(root: Path, checked: None) -> None:
    truncate(root / "shd_test.h5")
    with pytest.raises(ValueError, match="shd_test.h5 to be an HDF5 file, but it is truncated or corrupt"):
        module(root).setup()


def loop_for_ever(path: Path) -> None:
    """Set the size of the free space in a heap of HDF5 to 0: its library then steps on by 0 bytes."""
    whole = bytearray(path.read_bytes())
    position = whole.index(b"GCOL\x01\0\0\0") + 16
    while struct.unpack_from("<H", whole, position)[0] != 0:
        position += 16 + -(-struct.unpack_from("<Q", whole, position + 8)[0] // 8) * 8
    struct.pack_into("<Q", whole, position + 8, 0)
    path.write_bytes(whole)


def test_a_file_with_which_hdf5_does_not_come_to_an_end_is_refused(
    root: Path, checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root / "shd_test.h5", speak(3, (4, 5), seed=2, spikes=10))
    module(root).prepare_data()
    shutil.rmtree(root.parent / "cache")
    loop_for_ever(root / "shd_test.h5")
    monkeypatch.setattr(shd_check, "SECONDS", 2)  # of the processor, and after the imports
    with pytest.raises(ValueError, match=r"Expected .*shd_test.h5 to be an HDF5 file, but .* needs more than 2 s"):
        module(root).prepare_data()


@pytest.mark.parametrize(("status", "found"), [(-11, "ends with SIGSEGV"), (0, None), (1, None)])
def test_a_file_with_which_hdf5_crashes_is_refused(
    status: int, found: str | None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lightning_snn.subprocesses.subprocess.run", lambda *_, **__: SimpleNamespace(returncode=status)
    )
    if found is None:
        shd_check.check_readable(root / "shd_test.h5")
        return
    with pytest.raises(ValueError, match=rf"shd_test.h5 to be an HDF5 file, but it is corrupt: to read it {found}"):
        shd_check.check_readable(root / "shd_test.h5")


def test_a_recording_without_spikes_is_silence(root: Path) -> None:
    with_recording([], [])(root / "shd_test.h5")
    data = module(root)
    data.setup()
    assert first_batch(data)[0].sum((0, 2)).eq(0).nonzero().flatten().tolist() == [7]


def test_a_missing_h5py_is_an_error_that_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"shd_train.h5 needs: pip install 'lightning-snn\[events\]'"):
        module(root).setup()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_steps", 0),
        ("duration", 0.0),
        ("duration", 5.5),
        ("channels", 150),
        ("channels", 1400),
        ("val_speakers", []),
        ("max_shift", 141),
        ("batch_size", 0),
    ],
)
def test_an_argument_out_of_range_is_named(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{name}` ") as error:
        module(tmp_path, **{name: value})
    assert f"but got {value}" in str(error.value)


@pytest.mark.parametrize("speaker", [-1, 1.5, "0"])
def test_a_speaker_is_a_number_from_0(speaker: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`val_speakers` to be an integer of at least 0"):
        module(tmp_path, val_speakers=[speaker])


def write_commands(root: Path, keys: bool) -> list[list[Spoken]]:
    """Write files of the Spiking Speech Commands, without speakers and with or without names of the classes."""
    root.mkdir()
    files = []
    for seed, split in enumerate(("train", "valid", "test")):
        path, recordings = root / f"ssc_{split}.h5", speak(20, (4, 5), seed=seed)
        recordings = [recording._replace(label=recording.label + 15) for recording in recordings]
        write(path, recordings, keys=35)
        damage(path, "extra/speaker" if keys else "extra", None)
        files.append(recordings)
    return files


@pytest.mark.parametrize("keys", [True, False])
def test_speech_commands_are_read_in_their_three_files(keys: bool, tmp_path: Path) -> None:
    files = write_commands(tmp_path / "SSC", keys)
    data = SSC(str(tmp_path), cache_dir=str(tmp_path / "cache"), time_steps=50)
    data.setup()
    for part, recordings in zip((data.train_set, data.val_set, data.test_set), files, strict=True):
        assert isinstance(part, FrameDataset)
        assert part.labels.tolist() == [recording.label for recording in recordings]
        assert max(part.labels) == 34
        for (counts, _), recording in zip(part, recordings, strict=True):
            assert np.array_equal(counts[:, 0, 0].numpy(), binned(recording, 50, 1.0, 140))
    assert len(data.class_names) == data.num_classes == 35
    assert (data.class_names == SSC.class_names) != keys


def test_missing_speech_commands_are_named_with_their_source(tmp_path: Path) -> None:
    write_commands(tmp_path / "SSC", True)
    (tmp_path / "SSC" / "ssc_valid.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"ssc_valid.h5, but it is missing.*Speech Commands .*ssc_valid.h5.gz"):
        SSC(str(tmp_path)).setup()
    with pytest.raises(ValueError, match=r"`root` to be a folder, but got None. The Spiking Speech Commands"):
        SSC()
