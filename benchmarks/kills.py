"""Kill a recipe at random moments, resume it, and compare its weights with those of the run that was not killed.

    python benchmarks/kills.py [--kills 50] [--twice 0.3] [--seed 0] [--other-tmp /dev/shm] [--keep FOLDER]

The recipe is `recipes/sbnn_dvs.py` on a few simulated gestures, with noise from the first epoch on and augmentation.
Every run is a process that `kill -9` ends at a moment that is uniform over the time that an uninterrupted run takes,
then resumed from its last checkpoint, or started again if there is none yet. Some resumed runs are killed again.
In every other run TMPDIR is on another file system than the run. Before a run is resumed, all files that the killed one
left behind get the age of two days, so that a clean-up by age may remove them.

It prints a table and ends with status 1 unless every run ends with the weights and the state of the optimizer of the
uninterrupted one, bit for bit, every checkpoint can be read, and nothing stray is left. Processes are forked from one
that has imported the library, which takes longer than a run. Times are used for nothing but the moments.
"""

from __future__ import annotations

import argparse
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lightning_snn.cli  # noqa: F401  # once, before processes are forked

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "sbnn_dvs.py"
OPTIONS = {
    "data.train_subjects": 4,
    "data.val_subjects": 1,
    "data.test_subjects": 1,
    "data.repetitions": 1,
    "data.time_steps": 4,
    "data.batch_size": 8,
    "data.drop_events": 0.2,
    "network": "MLP",
    "network.hidden": "[32]",
    "method.samples": 2,
    "method.mean_epochs": 0,
    "trainer.max_epochs": 12,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}
DAYS = 2 * 24 * 3600  # in seconds


def start(folder: Path, tmp: Path, arguments: Sequence[str]) -> int:
    """Start the recipe in another process and return its number."""
    tmp.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["TMPDIR"], tempfile.tempdir = str(tmp), None
        sys.argv = [str(RECIPE), *arguments]
        runpy.run_path(str(RECIPE), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        os._exit(status)


def wait(pid: int, folder: Path) -> None:
    """Wait for the end of a run.

    Raises:
        RuntimeError: if it failed; the message holds the end of its output.
    """
    _, status = os.waitpid(pid, 0)
    if status != 0:
        log = (folder.parent / f"{folder.name}.log").read_text()
        raise RuntimeError(
            f"the run in {folder} failed with status {os.waitstatus_to_exitcode(status)}:\n{log[-3000:]}"
        )


def options(folder: Path) -> list[str]:
    """Return the arguments of a run in a folder."""
    return [part for name, value in {**OPTIONS, "output": folder}.items() for part in (f"--{name}", str(value))]


def trained(folder: Path) -> list[torch.Tensor]:
    """Return the weights and the state of the optimizer at the end of a run."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = list(checkpoint["state_dict"].values())
    for state in checkpoint["optimizer_states"][0]["state"].values():
        found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return found


def age(*folders: Path) -> None:
    """Let all files and folders within look two days old."""
    then = time.time() - DAYS
    for folder in folders:
        for path in [folder, *folder.rglob("*")] if folder.exists() else ():
            os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    """Return the names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


class Kills:
    """Runs that are killed and resumed.

    Args:
        root: folder of the runs.
        other: folder on another file system.
        rng: chooses the moments.
    """

    def __init__(self, root: Path, other: Path, rng: random.Random) -> None:
        self.root, self.other, self.rng = root, other, rng
        self.counts = dict.fromkeys(
            ("kills", "runs", "resumed", "started again", "unreadable", "different", "stray"), 0
        )
        self.elsewhere = 0
        self.failures: list[str] = []

    def uninterrupted(self) -> None:
        """Run once to fill the cache of the data, and once for the weights and the duration."""
        for name in ("first", "whole"):
            begun = time.monotonic()
            folder = self.root / name
            wait(start(folder, self.root / "tmp", options(folder)), folder)
            self.duration = time.monotonic() - begun
        self.expected = trained(self.root / "whole")
        if not all(map(torch.equal, self.expected, trained(self.root / "first"))):
            raise RuntimeError("two uninterrupted runs differ, so that nothing can be compared with them")
        self.files = names(self.root / "whole")

    def run(self, index: int, twice: float) -> int:
        """Kill a run once or more often, let it end, and return the number of kills."""
        folder = self.root / f"run {index}"
        tmp = (self.other if index % 2 else self.root) / f"tmp {index}"
        arguments, killed = options(folder), 0
        while killed == 0 or self.rng.random() < twice:
            pid = start(folder, tmp, arguments)
            time.sleep(self.rng.uniform(0, self.duration) / (1 + killed))
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                break  # it ended before
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
            self.elsewhere += index % 2
            age(folder, tmp)
            arguments = self.after_a_kill(folder)
        if not (folder / "metrics.json").is_file():
            wait(start(folder, tmp, arguments), folder)
        self.check(index, folder, tmp)
        self.counts["kills"] += killed
        self.counts["runs"] += 1
        return killed

    def after_a_kill(self, folder: Path) -> list[str]:
        """Return the arguments with which a killed run goes on."""
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            try:
                torch.load(last, weights_only=True)
                self.counts["resumed"] += 1
                return ["--ckpt_path", str(last)]
            except Exception as error:  # any error is a finding
                self.counts["unreadable"] += 1
                self.failures.append(f"{last} of {last.stat().st_size} bytes: {error!r}"[:300])
        self.counts["started again"] += 1
        shutil.rmtree(folder, ignore_errors=True)
        return options(folder)

    def check(self, index: int, folder: Path, tmp: Path) -> None:
        """Compare a finished run with the uninterrupted one."""
        found = trained(folder)
        if len(found) != len(self.expected) or not all(map(torch.equal, found, self.expected)):
            self.counts["different"] += 1
            self.failures.append(f"run {index} ended with other weights")
        stray = sorted((names(folder) - self.files) | names(tmp))
        # a run that went on has a file of its logger for each part
        stray = [name for name in stray if not name.startswith("logs")]
        self.counts["stray"] += len(stray)
        self.failures += [f"run {index} left {name}" for name in stray]
        shutil.rmtree(folder)
        shutil.rmtree(tmp, ignore_errors=True)


def parse() -> Any:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--twice", type=float, default=0.3, help="probability that a resumed run is killed again")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--other-tmp", type=Path, default=Path("/dev/shm"), help="folder on another file system")
    parser.add_argument("--keep", type=Path, help="folder in which the runs are kept if something was found")
    return parser.parse_args()


def main() -> int:
    """Run until the number of kills is reached, print the table, and return the exit status."""
    torch.set_num_threads(1)
    chosen = parse()
    root = Path(tempfile.mkdtemp(prefix="kills-")) if chosen.keep is None else chosen.keep.resolve()
    root.mkdir(parents=True, exist_ok=True)
    other = Path(tempfile.mkdtemp(dir=chosen.other_tmp, prefix="kills-"))
    if other.stat().st_dev == root.stat().st_dev:
        print(f"{chosen.other_tmp} is on the file system of {root}: choose another one by --other-tmp", file=sys.stderr)
        return 2
    os.environ["LIGHTNING_SNN_CACHE"] = str(root / "cache")
    kills = Kills(root, other, random.Random(chosen.seed))
    try:
        kills.uninterrupted()
        with tqdm(total=chosen.kills, desc="kills") as bar:
            while kills.counts["kills"] < chosen.kills:
                bar.update(kills.run(kills.counts["runs"], chosen.twice))
    finally:
        shutil.rmtree(other, ignore_errors=True)
        if chosen.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    print(f"\n{'quantity':<40}count")
    for name, count in {**kills.counts, "kills with TMPDIR on another file system": kills.elsewhere}.items():
        print(f"{name:<40}{count}")
    print("\n".join(kills.failures))
    return int(bool(kills.failures))


if __name__ == "__main__":
    sys.exit(main())
