"""Full and read-only disks: real ones of two megabytes, which a process of its own mounts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE, with_checkout

WORK = """
import errno, json, subprocess, sys, tempfile
from pathlib import Path
import numpy as np, torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_snn import AtomicCheckpointIO, figures
from lightning_snn.data.cache import save_rows
from lightning_snn.files import copy_file, write_json, write_text

disk, elsewhere = map(Path, sys.argv[1:])
plugin = AtomicCheckpointIO()
small, large = {"weight": torch.zeros(50_000)}, {"weight": torch.ones(1_000_000)}
(elsewhere / "large.bin").write_bytes(bytes(4_000_000))

plugin.save_checkpoint(small, disk / "last.ckpt")
write_text(disk / "text.txt", "before")
write_json(disk / "numbers.json", {"a": 1})
copy_file(disk / "text.txt", disk / "copy.txt")
before = {each.name: each.read_bytes() for each in disk.iterdir()}

class Figure:
    def savefig(self, path, format):
        path.write_bytes(bytes(4_000_000))

writes = {
    "last.ckpt": lambda: plugin.save_checkpoint(large, disk / "last.ckpt"),
    "text.txt": lambda: write_text(disk / "text.txt", "a" * 4_000_000),
    "numbers.json": lambda: write_json(disk / "numbers.json", {"a": [0] * 1_000_000}),
    "copy.txt": lambda: copy_file(elsewhere / "large.bin", disk / "copy.txt"),
    "figure.png": lambda: figures.save(Figure(), disk / "figure.png"),
    "set": lambda: save_rows(disk / "set", ({"a": np.zeros(1000)} for _ in range(1000))),
}

def check(number, *parts):
    for name, write in writes.items():
        try:
            write()
        except OSError as error:
            message, found = str(error), error.errno
        else:
            raise AssertionError(f"{name} was written")
        assert found == number, (name, message)
        stands = "What was there before is unchanged" if name in before else "Nothing was written"
        for part in (f"Expected to write {disk / name}, but ", f"are free in {disk})", stands, *parts):
            assert part in message, (part, message)
        assert {each.name: each.read_bytes() for each in disk.iterdir()} == before, name
    assert torch.equal(plugin.load_checkpoint(disk / "last.ckpt")["weight"], small["weight"])

check(errno.ENOSPC, "the disk has too little space", "Free space, or choose another folder")

# a full folder for temporary files does not matter on a disk that has space
tempfile.tempdir = str(disk)
plugin.save_checkpoint(large, elsewhere / "last.ckpt")
assert torch.equal(plugin.load_checkpoint(elsewhere / "last.ckpt")["weight"], large["weight"])
try:  # the negative control
    TorchCheckpointIO().save_checkpoint(large, elsewhere / "other.ckpt")
except OSError:
    pass
else:
    raise AssertionError("Lightning wrote without a folder for temporary files")
for each in disk.glob("tmp*"):
    each.unlink()

# a move to another disk is a copy, which is cut: the negative control of the first check
tempfile.tempdir = str(elsewhere)
(disk / "other.ckpt").write_bytes((disk / "last.ckpt").read_bytes())
try:
    TorchCheckpointIO().save_checkpoint(large, disk / "other.ckpt")
except OSError:
    pass
assert (disk / "other.ckpt").read_bytes() != before["last.ckpt"]
(disk / "other.ckpt").unlink()

subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
check(errno.EROFS, "the disk is read-only", "Choose another folder")
print("done")
"""


def test_a_full_and_a_read_only_disk_leave_all_files_as_they_were(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed, without which a test cannot mount a disk")
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()

    def mounted(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        script = f'mount -t tmpfs -o size=2m tmpfs "$1" && shift && {command}'
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", disk, *map(str, arguments)],
            env=with_checkout({}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    if mounted("true").returncode != 0:
        pytest.skip("this system does not let a process mount disks of its own")
    finished = mounted('exec "$@"', sys.executable, "-c", WORK, disk, elsewhere)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "done"
