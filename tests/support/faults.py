"""Real faults of files and disks: processes that are killed, limits of the system, and permissions."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# of the interpreter, raised right before the system is called
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "shutil.rmtree", "part")
NOBODY = 65534


def killed(work: Callable[[], Any], moment: int) -> bool:
    """Run ``work`` in a copy of this process, which is killed at a moment, as by ``kill -9``.

    Args:
        work: what to run.
        moment: number from 1 of the call of the system, or of ``sys.audit("part")``, before which the copy is killed.

    Returns:
        Whether it was killed; False if ``work`` was done before.
    """
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    child = os.fork()
    if child == 0:
        _run_until(work, moment)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed; see its traceback"
    return False


def _run_until(work: Callable[[], Any], moment: int) -> None:
    count = 0

    def reached(event: str, arguments: tuple[Any, ...] = ()) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    flush = os.fsync

    def flush_or_die(descriptor: int) -> None:
        reached("part")
        flush(descriptor)

    try:
        os.fsync = flush_or_die
        sys.addaudithook(reached)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size in bytes (EFBIG), as ``ulimit -f`` does."""
    resource = pytest.importorskip("resource", reason="this system has no limits of resources")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def bound_by_permissions(folder: Path) -> Iterator[None]:
    """Be a user whom permissions bind: root may read and write everything. All users can reach the folder."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has other permissions")
    root = os.geteuid() == 0
    for each in (folder, *folder.parents) if root else ():
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o055)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


class Attack:
    """Object whose pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def attack(mark: Path) -> bytes:
    """Return a pickle that makes the folder ``mark`` when it is loaded."""
    return pickle.dumps(Attack(mark))
