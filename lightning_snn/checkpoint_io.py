"""Checkpoints that survive a cut write, and errors that name the file when one is damaged."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.core.saving import (
    CHECKPOINT_PAST_HPARAMS_KEYS,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lightning_snn.files import write_atomically
from lightning_snn.reading import reading

MapLocation = Callable[[Any, str], Any] | torch.device | str | dict[str, str] | None
_PART = 1 << 20
# what the strategies that shard a model write in the place of a file
_SHARDED = ("meta.pt", "checkpoint")
_REFUSED = re.compile(r"GLOBAL (\S+)")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Plugin that writes the checkpoints of a Trainer whole or not at all.

    Lightning's own plugin serializes a checkpoint in memory, writes it into the folder for temporary files (`TMPDIR`),
    and moves it. If that folder lies on another disk, the move is a copy: a process that is killed, or a disk that is
    full, leaves a truncated file in the place of the last good one. This plugin writes into the folder of the
    checkpoint, straight from the memory of the tensors, flushes to the disk and renames. After a failure the previous
    checkpoint stands, and the error names the file and the free space.

    A checkpoint is verified when it is loaded, by the check sums that `torch.save` stores.

    It works with `ModelCheckpoint`, `Trainer.save_checkpoint`, weights-only checkpoints, several processes, and
    `AsyncCheckpointIO(AtomicCheckpointIO())`, and is independent of the rest of this library. URLs that are not local
    are left to Lightning's plugin. Recipes use it.

    Example:
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what `torch.save` takes.
            path: the file to create or replace; missing folders are created.
            storage_options: must be None.

        Raises:
            OSError: if a local file cannot be written; the previous one stands.
            TypeError: if `storage_options` are given.
        """
        file = _local(path)
        if file is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_torch(file, checkpoint)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, after its check sums were verified.

        Args:
            path: the file.
            map_location: see `torch.load`; the default keeps everything on the CPU.
            weights_only: as in `torch.load`, whose default True refuses all but tensors and plain data.

        Raises:
            OSError: if a local file is missing or cannot be read.
            ValueError: if it is truncated, corrupt, or holds what `weights_only` refuses.
        """
        file = _local(path)
        if file is None:
            return super().load_checkpoint(path, map_location, weights_only)
        checkpoint: dict[str, Any] = read_torch(file, map_location, weights_only)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint. A folder stays, with a warning, unless a strategy that shards models wrote it.

        Args:
            path: the file.
        """
        file = _local(path)
        if file is None or any((file / name).exists() for name in _SHARDED):
            super().remove_checkpoint(path)
        elif file.is_dir() and not file.is_symlink():
            rank_zero_warn(f"Expected checkpoint {file} to be a file, but it is a folder. It is kept")
        else:
            file.unlink(missing_ok=True)


def write_torch(path: str | os.PathLike[str], value: Any) -> Path:
    """Write what `torch.save` takes to a file atomically, without a copy in memory.

    Args:
        path: the file to create or replace; missing folders are created.
        value: tensors and containers of them, for one.

    Returns:
        ``path``.

    Raises:
        OSError: if the file cannot be written; see :func:`~lightning_snn.files.write_atomically`.

    Example:
        >>> read_torch(write_torch("two.pt", {"two": torch.full((1,), 2)}))
        {'two': tensor([2])}
    """
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        output = _Output(file)
        try:
            torch.save(value, cast(IO[bytes], output))
        except Exception as error:
            # torch reports an error of the disk, and Ctrl-C, as a RuntimeError about positions
            if output.error is not None:
                raise output.error from None
            interrupt = _interrupt_behind(error)
            if interrupt is not None:
                raise interrupt from None
            raise
    return Path(path)


def read_torch(
    path: str | os.PathLike[str], map_location: MapLocation = None, weights_only: bool | None = True, mmap: bool = False
) -> Any:
    """Read a file of `torch.save`, after the check sums that it holds were verified.

    Args:
        path: the file.
        map_location: see `torch.load`.
        weights_only: see `torch.load`; True refuses all but tensors and plain data.
        mmap: map the tensors instead of reading them, if the file has the format of torch since 1.6.

    Returns:
        What was saved.

    Raises:
        OSError: if the file is missing or cannot be read.
        ValueError: if it is truncated, corrupt, or holds what `weights_only` refuses; the message names it.
    """
    with reading(path, "a file of torch.save", "Use another checkpoint"):
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _verify(path)
        elif os.path.getsize(path) == 0:
            raise ValueError("it is empty")
        try:
            return torch.load(path, map_location=map_location, weights_only=weights_only, mmap=mmap and zipped)
        except pickle.UnpicklingError as error:
            refused = _REFUSED.search(str(error))
            if refused is None:
                raise
            failure = ValueError(
                f"Expected {path} to hold tensors and plain data only, but loading it would call {refused[1]}. Pass "
                "`weights_only=False` if you trust its origin: it may run any code"
            )
    raise failure


def build_options(path: Any, kind: type, hparams_file: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
    """Return the options with which Lightning builds the module of a checkpoint that a command line wrote.

    A local file is verified, and its tensors are not read.

    Args:
        path: path or URL of the checkpoint, or an open file.
        kind: class of the module.
        hparams_file: YAML or CSV file of more options.
        weights_only: as in :func:`read_torch`.

    Returns:
        Options of the class by name; none if the checkpoint does not say how to build the module.

    Raises:
        OSError: if a local file is missing or cannot be read.
        ValueError: if it is damaged, or no checkpoint of Lightning; the message names it.
    """
    checkpoint = _read_anywhere(path, weights_only)
    options: dict[str, Any] = {}
    try:
        for key in (*CHECKPOINT_PAST_HPARAMS_KEYS, "hyper_parameters"):
            options.update(checkpoint.get(key) or {})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to be a checkpoint of Lightning, but it holds other data ({error})"
        ) from error
    if hparams_file is not None:
        load = load_hparams_from_tags_csv if str(hparams_file).endswith(".csv") else load_hparams_from_yaml
        options.update(load(hparams_file))
    if options.pop("_instantiator", None) is None:
        return {}
    accepted = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in accepted.values()):
        # a class that Lightning refuses unless it was imported
        return {name: value for name, value in options.items() if name != "_class_path"}
    return {name: value for name, value in options.items() if name in accepted}


def _read_anywhere(path: Any, weights_only: bool | None) -> Any:
    """Read a checkpoint from a file, from a URL, or from an open file, whose position stays."""
    if not isinstance(path, (str, os.PathLike)):
        position = path.tell()
        checkpoint = torch.load(path, "cpu", weights_only=weights_only)
        path.seek(position)
        return checkpoint
    file = _local(path)
    if file is None:
        return TorchCheckpointIO().load_checkpoint(os.fspath(path), weights_only=weights_only)
    return read_torch(file, "cpu", weights_only, mmap=True)


def _local(path: str | os.PathLike[str]) -> Path | None:
    """Return the path of a local file, which may be given as a URL; None if it lies elsewhere."""
    file_system, inside = url_to_fs(str(path))
    return Path(inside) if isinstance(file_system, LocalFileSystem) else None


def _verify(path: str | os.PathLike[str]) -> None:
    """Raise an exception if an entry of a zip file differs from its check sum, which torch does not look at."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.CRC != 0:  # it is 0 if check sums were switched off by `torch.serialization.set_crc32_options`
                with archive.open(entry) as content:
                    while content.read(_PART):
                        pass


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the Ctrl-C while which an error occurred, None if there was none."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


class _Output:
    """Writer that keeps the first error of the system, which passes through torch's C++ code as another one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is not None:
            raise self.error
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
