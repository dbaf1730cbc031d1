"""Every kind of file that the library reads, with every kind of damage: one error that names the file, and no code run.

A damaged file is refused, or it is read as something that the format cannot tell from a whole file: formats with check
sums must then give what was written.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lightning_snn.checkpoint_io import read_torch, write_torch
from lightning_snn.data import SHDFile, find_recordings, read_aedat, read_gestures, read_nmnist
from lightning_snn.data.cache import load_checked, save_rows
from lightning_snn.data.gesture_files import Recording
from lightning_snn.data.image_files import read_cifar10, read_mnist
from lightning_snn.figures import read_history
from tests.support.aedat import (
    AEDAT2_LINES,
    AEDAT3_HEADER,
    aedat2_records,
    aedat3_polarity,
    aedat4_events,
    aedat4_file,
    aedat4_stream,
    dvs128_address,
)
from tests.support.faults import Attack, attack, bound_by_permissions

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30) % 10
EVENTS = (*GENERATOR.integers(0, 34, (2, 60)), GENERATOR.integers(0, 2, 60), np.arange(60) * 1000)
ROWS = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}


class Kind(NamedTuple):
    """Kind of file.

    Attributes:
        write: writes a whole one into an empty folder and returns its path.
        read: reads it, and returns numbers, arrays and tensors.
        summed: whether its format holds check sums of all content.
        sized: whether its format shows where its content must end.
        zeros: whether a file of zeros is one, too.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    summed: bool = False
    sized: bool = True
    zeros: bool = False


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def npz(folder: Path) -> Path:
    np.savez_compressed(folder / "images.npz", **ROWS)
    return folder / "images.npz"


def idx(folder: Path, packed: bool) -> Path:
    suffix, pack = (".gz", gzip.compress) if packed else ("", bytes)
    for prefix in ("t10k", "train"):
        for name, array in (("labels-idx1", LABELS), ("images-idx3", IMAGES)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = put(folder, f"{prefix}-{name}-ubyte{suffix}", pack(head + array.astype(np.uint8).tobytes()))
    return path


def cifar(folder: Path) -> Path:
    pixels = GENERATOR.integers(0, 256, (10, 3072), dtype=np.uint8)
    content = pickle.dumps({b"data": pixels, b"labels": list(range(10))}, 2)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        path = put(folder, name, content)
    return path


def nmnist(folder: Path) -> Path:
    records = (bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, p, t in np.stack(EVENTS, 1).tolist())
    return put(folder, "00001.bin", b"".join(records))


def aedat2(folder: Path) -> Path:
    records = [(dvs128_address(x, y, p), t) for x, y, p, t in np.stack(EVENTS, 1).tolist()]
    return put(folder, "two.aedat", AEDAT2_LINES + aedat2_records(records))


def aedat4(folder: Path, code: int) -> Path:
    compress: Callable[[bytes], bytes] = bytes
    if code == 1:
        compress = pytest.importorskip("lz4.frame", reason="lz4 is not installed").compress
    if code == 3:
        compress = pytest.importorskip("zstandard", reason="zstandard is not installed").ZstdCompressor().compress
    streams = [aedat4_stream(0, "EVTS", (34, 34))]
    return put(folder, "four.aedat4", aedat4_file([(0, aedat4_events(EVENTS))] * 2, streams, code, compress))


def tonic(folder: Path) -> Path:
    np.save(folder / "3.npy", np.stack(EVENTS, 1).astype(np.float64))
    return folder / "3.npy"


def spikingjelly(folder: Path) -> Path:
    np.savez(folder / "user01_0.npz", **dict(zip("xypt", EVENTS, strict=True)))
    return folder / "user01_0.npz"


def original(folder: Path) -> Path:
    for split, name in (("train", "user01_led"), ("test", "user02_led")):
        put(folder, f"trials_to_{split}.txt", f"{name}.aedat\n".encode())
        put(folder, f"{name}.aedat", AEDAT3_HEADER + aedat3_polarity(EVENTS))
        put(folder, f"{name}_labels.csv", b"class,startTime_usec,endTime_usec\n1,0,30000\n2,30000,60000\n")
    return folder


def gestures_of(folder: Path) -> list[Any]:
    _, recordings = find_recordings(folder)
    return [gesture.events for each in recordings["train"] for gesture in read_gestures(each)]


def labelled(path: Path) -> list[Any]:
    return [gesture.events for gesture in read_gestures(Recording(path, "user01", 3))]


def hdf5(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(folder / "shd_test.h5", "w") as file:
        times = file.create_dataset("spikes/times", (5,), h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", (5,), h5py.vlen_dtype(np.uint16))
        for index in range(5):
            times[index], units[index] = np.arange(9) / 16, np.arange(9)
        file["labels"], file["extra/speaker"] = np.arange(5, dtype=np.uint16), np.arange(5, dtype=np.uint16)
        file["extra/keys"] = np.array([b"key"] * 20)
    return folder / "shd_test.h5"


def read_hdf5(path: Path) -> list[Any]:
    with SHDFile(path) as recordings:
        return [tuple(recording) for recording in recordings]


def cache(folder: Path) -> Path:
    save_rows(folder / "set", ({"frames": image} for image in IMAGES))
    return folder / "set" / "frames.npy"


def read_cache(folder: Path) -> np.ndarray:
    return np.array(load_checked(folder, {"frames": ((None, 28, 28), np.uint8)})["frames"])


def checkpoint(folder: Path) -> Path:
    return write_torch(folder / "last.ckpt", {"weight": torch.arange(500.0), "epoch": 3})


def history(folder: Path) -> Path:
    return put(folder, "metrics.csv", b"epoch,step,val/loss\n" + b"".join(b"%d,%d,0.25\n" % (n, n) for n in range(9)))


KINDS = {
    "npz": Kind(npz, read_mnist, summed=True),
    "idx": Kind(lambda folder: idx(folder, False), lambda path: read_mnist(path.parent)),
    "idx.gz": Kind(lambda folder: idx(folder, True), lambda path: read_mnist(path.parent), summed=True),
    "pickle of CIFAR-10": Kind(cifar, lambda path: read_cifar10(path.parent)),
    "bin of N-MNIST": Kind(nmnist, read_nmnist, sized=False, zeros=True),
    "aedat 2": Kind(aedat2, lambda path: read_aedat(path, sensor_size=(128, 128)), sized=False),
    "aedat 3": Kind(
        lambda folder: original(folder) / "user01_led.aedat", lambda path: read_aedat(path, sensor_size=(128, 128))
    ),
    "aedat 4": Kind(lambda folder: aedat4(folder, 0), read_aedat),
    "aedat 4, lz4": Kind(lambda folder: aedat4(folder, 1), read_aedat),
    "aedat 4, zstd": Kind(lambda folder: aedat4(folder, 3), read_aedat),
    "npy of events": Kind(tonic, labelled),
    "npz of events": Kind(spikingjelly, labelled, summed=True),
    "csv of gestures": Kind(
        lambda folder: original(folder) / "user01_led_labels.csv", lambda path: gestures_of(path.parent), sized=False
    ),
    "list of recordings": Kind(
        lambda folder: original(folder) / "trials_to_train.txt", lambda path: gestures_of(path.parent), sized=False
    ),
    "hdf5": Kind(hdf5, read_hdf5),
    "cache": Kind(cache, lambda path: read_cache(path.parent), summed=True),
    "check sums": Kind(
        lambda folder: cache(folder).with_name("checksums.json"), lambda path: read_cache(path.parent), summed=True
    ),
    "checkpoint": Kind(checkpoint, read_torch, summed=True),
    "csv of values": Kind(history, read_history, sized=False),
}


def same(one: Any, other: Any) -> bool:
    """Return whether two results hold the same numbers."""
    if hasattr(one, "__dataclass_fields__"):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


def refused(kind: Kind, path: Path, whole: Any, exact: bool) -> bool:
    """Read a damaged file: return whether it was refused by its name, or else check what was read."""
    try:
        found = kind.read(path)
    except (OSError, ValueError) as error:
        message = str(error)
    else:
        assert not exact or same(found, whole)
        return False
    assert message.startswith("Expected ")
    assert path.name.partition(".")[0] in message
    return True


@pytest.fixture
def file(kind: Kind, tmp_path: Path) -> Path:
    return kind.write(tmp_path)


@pytest.fixture
def whole(kind: Kind, file: Path) -> Any:
    return kind.read(file)


kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@kinds
def test_a_missing_file_a_folder_and_one_without_permission_are_named(kind: Kind, file: Path, whole: Any) -> None:
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^Expected .*{file.name.partition('.')[0]}.*"):
        kind.read(file)
    file.mkdir()
    with pytest.raises((IsADirectoryError, FileNotFoundError), match=rf"^Expected .*{file.name}"):
        kind.read(file)
    file.rmdir()
    file.write_bytes(content)
    file.chmod(0)
    with (
        bound_by_permissions(file.parent),
        pytest.raises(PermissionError, match=rf"^Expected .*{file.name}.* may not read it"),
    ):
        kind.read(file)


@kinds
def test_empty_and_foreign_files_are_named(kind: Kind, file: Path, whole: Any) -> None:
    size = file.stat().st_size
    noise = np.random.default_rng(1).integers(0, 256, size, np.uint8).tobytes()
    for content in (b"", b"junk" * 100, "übel\n".encode("latin-1") * 9, noise, b"\xff" * size, b"{[(\x00" * 50):
        file.write_bytes(content)
        assert refused(kind, file, whole, exact=False), content[:9]
    file.write_bytes(bytes(size))
    assert refused(kind, file, whole, exact=False) != kind.zeros


@kinds
def test_truncated_files_are_named(kind: Kind, file: Path, whole: Any) -> None:
    content = file.read_bytes()
    for size in {
        1,
        7,
        len(content) // 5,
        len(content) // 3,
        len(content) // 2,
        len(content) * 4 // 5,
        len(content) - 1,
    }:
        file.write_bytes(content[:size])
        refused(kind, file, whole, exact=kind.sized)


# the library of HDF5 may loop for ever on a damaged file, for which the data module has a check of its own
@pytest.mark.parametrize("name", [name for name in KINDS if name != "hdf5"])
def test_zeroed_and_flipped_parts_are_named_or_not_to_be_seen(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    file = kind.write(tmp_path)
    whole = kind.read(file)
    content = file.read_bytes()
    third = len(content) // 3
    found = 0
    for start in (0, third, 2 * third):
        file.write_bytes(content[:start] + bytes(third) + content[start + third :])
        found += refused(kind, file, whole, exact=kind.summed)
    for index in range(0, len(content), max(1, len(content) // 150)):
        for bit in (1, 64):
            file.write_bytes(content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :])
            found += refused(kind, file, whole, exact=kind.summed)
    assert found > (40 if kind.summed else 0)


def hostile(mark: Path) -> dict[str, bytes]:
    """Return files that run code in a reader that trusts them."""
    array = np.array([Attack(mark)], dtype=object)
    npy, zipped, saved = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, array, allow_pickle=True)
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in (*ROWS, *"xypt"):
            archive.writestr(f"{name}.npy", npy.getvalue())
    torch.save({"weight": Attack(mark)}, saved)
    return {
        "pickle": attack(mark),
        "packed pickle": gzip.compress(attack(mark)),
        "npy": npy.getvalue(),
        "npz": zipped.getvalue(),
        "checkpoint": saved.getvalue(),
        "yaml": f"!!python/object/apply:os.mkdir ['{mark}']\n".encode(),
        "entities": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    }


@kinds
def test_hostile_files_are_named_and_run_nothing(kind: Kind, file: Path, whole: Any, tmp_path: Path) -> None:
    for content in hostile(tmp_path / "attacked").values():
        file.write_bytes(content)
        assert refused(kind, file, whole, exact=False)
    assert not (tmp_path / "attacked").exists()


def test_hostile_files_run_code_in_a_reader_that_trusts_them(tmp_path: Path) -> None:
    """The negative control of the test above."""
    files = hostile(tmp_path / "attacked")
    for load, name in (
        (lambda file: pickle.load(file), "pickle"),
        (lambda file: np.load(file, allow_pickle=True), "npy"),
        (lambda file: torch.load(file, weights_only=False), "checkpoint"),
    ):
        load(io.BytesIO(files[name]))
        (tmp_path / "attacked").rmdir()


def test_a_list_names_files_of_its_folder_only(tmp_path: Path) -> None:
    folder = original(tmp_path / "set")
    for name in ("/dev/zero", "../set/user01_led.aedat", "sub/user01_led.aedat"):
        (folder / "trials_to_train.txt").write_text(f"{name}\n")
        with pytest.raises(ValueError, match=r"trials_to_train.txt to list names of files in its folder, but got '"):
            find_recordings(folder)


@pytest.mark.parametrize("stop", ["9" * 15, "9" * 5000, "700000000"])
def test_a_gesture_of_any_length_is_refused_before_it_is_cut_into_clips(stop: str, tmp_path: Path) -> None:
    folder = original(tmp_path)
    (folder / "user01_led_labels.csv").write_text(f"class,startTime_usec,endTime_usec\n1,0,{stop}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*user01_led_labels.csv to hold a class .* at most 600 s later"):
        gestures_of(folder)
