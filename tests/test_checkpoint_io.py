"""Checkpoints that are written whole or not at all, in any Lightning project."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from lightning_snn import AtomicCheckpointIO, checkpoint_io
from lightning_snn.checkpoint_io import read_torch, write_torch
from tests.support.faults import Attack, attack, killed, largest_file
from tests.support.processes import on_two_processes
from tests.support.training import trainer

SOME = {"state_dict": {"weight": torch.arange(3000.0)}, "epoch": 3}


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["epoch"] == other["epoch"] and torch.equal(*(each["state_dict"]["weight"] for each in (one, other)))


class Scored(BoringModel):
    """Model whose validation gets worse and better."""

    def on_train_epoch_end(self) -> None:
        self.log("score", torch.tensor(float([3, 1, 2, 0, 5][self.current_epoch])))


@pytest.fixture
def without_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files to which nothing can be written."""
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")


@pytest.mark.usefixtures("without_temporary_folder")
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_trainer_saves_resumes_and_removes_without_a_temporary_folder(
    weights_only: bool, wrapped: bool, tmp_path: Path
) -> None:
    plugin = AsyncCheckpointIO(AtomicCheckpointIO()) if wrapped else AtomicCheckpointIO()
    best = ModelCheckpoint(
        tmp_path / "best",
        "{epoch}",
        monitor="score",
        # Lightning's asynchronous plugin removes a checkpoint at once, even one that is still to be written
        save_top_k=-1 if wrapped else 2,
        save_last=True,
        save_weights_only=weights_only,
    )
    fitting = trainer(
        best, plugins=[plugin], enable_checkpointing=True, max_epochs=4, limit_train_batches=2, limit_val_batches=0
    )
    model = Scored()
    fitting.fit(model)
    kept = range(4) if wrapped else (1, 3)
    assert names(tmp_path / "best") == [*(f"epoch={epoch}.ckpt" for epoch in kept), "last.ckpt"]
    last = torch.load(tmp_path / "best" / "last.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"]["layer.weight"], model.layer.weight)
    assert ("optimizer_states" in last) != weights_only
    fitting.save_checkpoint(tmp_path / "mine.ckpt", weights_only=weights_only)
    fitting.strategy.checkpoint_io.teardown()  # of the asynchronous one, which saves in a thread
    assert torch.equal(read_torch(tmp_path / "mine.ckpt")["state_dict"]["layer.weight"], model.layer.weight)
    if not weights_only:
        resumed = trainer(plugins=[AtomicCheckpointIO()], max_epochs=5, limit_train_batches=2, limit_val_batches=0)
        resumed.fit(Scored(), ckpt_path=tmp_path / "mine.ckpt")
        assert resumed.global_step == 10


@pytest.mark.usefixtures("without_temporary_folder")
def test_the_plugin_of_lightning_needs_the_temporary_folder(tmp_path: Path) -> None:
    """The negative control of the test above."""
    with pytest.raises(NotADirectoryError):
        TorchCheckpointIO().save_checkpoint(SOME, tmp_path / "one.ckpt")
    AtomicCheckpointIO().save_checkpoint(SOME, tmp_path / "one.ckpt")
    assert same(TorchCheckpointIO().load_checkpoint(tmp_path / "one.ckpt"), SOME)


def test_paths_and_urls_of_local_files_are_the_same(tmp_path: Path) -> None:
    plugin = AtomicCheckpointIO()
    for path in (tmp_path / "new" / "one.ckpt", str(tmp_path / "one.ckpt"), f"file://{tmp_path}/two.ckpt"):
        plugin.save_checkpoint(SOME, path)
        assert same(plugin.load_checkpoint(path), SOME)
        plugin.remove_checkpoint(path)
        with pytest.raises(FileNotFoundError, match=r"one|two"):
            plugin.load_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_other_urls_are_left_to_lightning() -> None:
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint(SOME, "memory://folder/one.ckpt")
    assert same(plugin.load_checkpoint("memory://folder/one.ckpt"), SOME)
    plugin.remove_checkpoint("memory://folder/one.ckpt")
    with pytest.raises(FileNotFoundError):
        plugin.load_checkpoint("memory://folder/one.ckpt")


def test_storage_options_are_refused_as_lightning_does(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(SOME, tmp_path / "one.ckpt", storage_options={})
    assert names(tmp_path) == []


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    plugin = AtomicCheckpointIO()
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "folder.ckpt" / "thesis.txt").touch()
    with pytest.warns(UserWarning, match=r"checkpoint .*folder.ckpt to be a file, but it is a folder. It is kept"):
        plugin.remove_checkpoint(tmp_path / "folder.ckpt")
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "folder.ckpt")
    plugin.remove_checkpoint(tmp_path / "link.ckpt")
    assert names(tmp_path) == ["folder.ckpt"]
    assert names(tmp_path / "folder.ckpt") == ["thesis.txt"]
    (tmp_path / "folder.ckpt" / "meta.pt").touch()  # a checkpoint of a strategy that shards models
    plugin.remove_checkpoint(tmp_path / "folder.ckpt")
    assert names(tmp_path) == []


def test_a_killed_process_leaves_the_last_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plugin, write = tmp_path / "last.ckpt", AtomicCheckpointIO(), checkpoint_io._Output.write

    def write_or_die(self: Any, data: Any) -> int:
        sys.audit("part")
        return write(self, data)

    monkeypatch.setattr(checkpoint_io._Output, "write", write_or_die)
    found, moment = set(), 1
    while True:
        plugin.save_checkpoint(SOME, path)
        if not killed(lambda: plugin.save_checkpoint({**SOME, "epoch": 4}, path), moment):
            break
        found.add(plugin.load_checkpoint(path)["epoch"])
        moment += 1
    assert found == {3, 4}
    assert moment > 10
    for stray in tmp_path.glob(".*"):
        os.utime(stray, (0, 0))
    shutil.move(tmp_path, tmp_path.with_name("moved"))  # which no process has written to yet
    plugin.save_checkpoint(SOME, tmp_path.with_name("moved") / "last.ckpt")
    assert names(tmp_path.with_name("moved")) == ["last.ckpt"]


@pytest.mark.parametrize("size", [100, 5000, 12_000])
def test_a_failed_write_leaves_the_last_checkpoint_and_names_the_disk(size: int, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "last.ckpt", SOME)
    with largest_file(size), pytest.raises(OSError, match=rf"Expected to write {path}, but .*is unchanged") as caught:
        write_torch(path, {**SOME, "epoch": 4})
    assert caught.value.errno == errno.EFBIG
    assert same(read_torch(path), SOME)
    assert names(tmp_path) == ["last.ckpt"]


def test_an_error_of_the_content_passes(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "last.ckpt", SOME)
    with pytest.raises((AttributeError, TypeError), match=r"pickle"):
        write_torch(path, {"function": lambda: 0})
    assert same(read_torch(path), SOME)
    assert names(tmp_path) == ["last.ckpt"]


def test_a_checkpoint_is_not_held_twice_in_memory(tmp_path: Path) -> None:
    def write_much() -> None:
        size = 64 << 20
        value = torch.ones(size // 4)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_torch(tmp_path / "much.pt", value)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < size / 4, f"{grown} bytes more in memory"

    assert not killed(write_much, -1)  # in a copy, whose memory was not larger before


def damaged(whole: bytes) -> list[bytes]:
    """Return the content of a file with every kind of damage."""
    flipped = []
    for index in range(3, len(whole), len(whole) // 40):
        flipped.append(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
    third = len(whole) // 3
    cut = [whole[:size] for size in (0, 1, 30, third, 2 * third, len(whole) - 1)]
    return [*flipped, *cut, bytes(len(whole)), whole[:third] + bytes(third) + whole[2 * third :], b"junk" * 100]


def test_a_damaged_checkpoint_is_refused_by_its_name_or_reads_the_same(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "last.ckpt", SOME)
    refused = 0
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            found = AtomicCheckpointIO().load_checkpoint(path)
        except ValueError as error:
            message = str(error)
        else:
            assert same(found, SOME)  # a byte between the entries
            continue
        assert message.startswith(f"Expected {path} to be a file of torch.save, but it is truncated or corrupt: ")
        refused += 1
    assert refused > 40


def test_torch_alone_does_not_see_a_damaged_weight(tmp_path: Path) -> None:
    """The negative control of the test above."""
    path = write_torch(tmp_path / "last.ckpt", SOME)
    whole = path.read_bytes()
    weight = torch.arange(3000.0).numpy().tobytes()
    index = whole.index(weight) + 400
    path.write_bytes(whole[:index] + b"\0\0\0\0" + whole[index + 4 :])
    assert not same(TorchCheckpointIO().load_checkpoint(path), SOME)
    with pytest.raises(ValueError, match=r"last.ckpt .*Bad CRC-32"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_file_without_check_sums_and_one_of_old_torch_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write_torch(tmp_path / "one.ckpt", SOME)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(read_torch(tmp_path / "one.ckpt"), SOME)
    torch.save(SOME, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert same(read_torch(tmp_path / "old.ckpt", mmap=True), SOME)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cannot_run_code(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    if zipped:
        torch.save({"state_dict": {}, "epoch": Attack(tmp_path / "attacked")}, path)
    else:
        path.write_bytes(attack(tmp_path / "attacked"))
    for weights_only in (None, True):
        with pytest.raises(ValueError, match=r"one.ckpt to "):
            AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not (tmp_path / "attacked").exists()
    if zipped:
        with pytest.raises(
            ValueError, match=r"one.ckpt to hold tensors and plain data only, .* call posix.mkdir. Pass"
        ):
            trainer(plugins=[AtomicCheckpointIO()]).fit(BoringModel(), ckpt_path=path)
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
        assert (tmp_path / "attacked").exists()


def saved_by(rank: int) -> list[str]:
    """Train on this process of two, and return the files that there are."""
    folder = Path(os.environ["CHECKPOINTS_FOLDER"])
    launched = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}
    launched |= {"MASTER_PORT": "0", "GROUP_RANK": "0", "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    with mock.patch.dict(os.environ, launched):
        fitting = trainer(
            ModelCheckpoint(folder, "one"),
            plugins=[AtomicCheckpointIO()],
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo"),
            enable_checkpointing=True,
            limit_train_batches=2,
            limit_val_batches=0,
        )
        fitting.fit(BoringModel())
    return names(folder)


def test_of_two_processes_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "processes").mkdir()
    monkeypatch.setenv("CHECKPOINTS_FOLDER", str(tmp_path / "checkpoints"))
    assert on_two_processes(saved_by, tmp_path / "processes") == [["one.ckpt"]] * 2
    assert read_torch(tmp_path / "checkpoints" / "one.ckpt")["global_step"] == 2


class Interrupting:
    """A value during whose serialization Ctrl-C is pressed."""

    def __reduce__(self) -> tuple[object, ...]:
        raise KeyboardInterrupt


def test_ctrl_c_while_a_checkpoint_is_written_stays_ctrl_c(tmp_path: Path) -> None:
    """It passes through torch's code, which reports the file that it could not end."""
    path = write_torch(tmp_path / "one.pt", {"weight": torch.ones(3)})
    with pytest.raises(KeyboardInterrupt):
        write_torch(path, {"weight": torch.zeros(100_000), "other": Interrupting()})
    assert read_torch(path)["weight"].tolist() == [1, 1, 1]
    assert [each.name for each in tmp_path.iterdir()] == ["one.pt"]
