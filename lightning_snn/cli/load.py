"""Loading the runs of recipes, to go on with them in Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentError, ArgumentParser

from lightning_snn.checkpoint_io import build_options
from lightning_snn.cli.choices import import_from_working_folder
from lightning_snn.cli.folders import CONFIG
from lightning_snn.cli.reading import check_checkpoint, read_options
from lightning_snn.data import FrameDataModule
from lightning_snn.import_paths import check_import_paths
from lightning_snn.module import SpikingModule
from lightning_snn.reading import reading


class LoadedRun(NamedTuple):
    """A run of a recipe, loaded.

    Attributes:
        module: the trained module, in evaluation mode, with its network and method.
        data: the data module; nothing is read before `setup`.
        config: options of the run by group, as in its `config.yaml`.
        folder: folder of the run.
    """

    module: SpikingModule
    data: FrameDataModule
    config: dict[str, Any]
    folder: Path


def load_run(
    folder: str | os.PathLike[str],
    checkpoint: str = "best",
    map_location: str | torch.device = "cpu",
    allow: Sequence[str] = (),
) -> LoadedRun:
    """Rebuild the module and the data of a run of a recipe from its folder.

    Args:
        folder: folder of the run, which a recipe prints at its start.
        checkpoint: "best" or "last", or the name of another file in its folder `checkpoints`.
        map_location: device of the weights.
        allow: modules of your own whose classes the run may name, such as ``["my_nets"]``, with all that is below them.
            They are imported and run, so allow only what the run is known to use.

    Returns:
        Module, data module, options and folder. Classes of your own must be importable under the paths that the run
        was given; the working folder is searched too, after all others.

    Raises:
        FileNotFoundError: if the folder holds no run, or no such checkpoint.
        OSError: if a file cannot be read; the message names it.
        ValueError: if a file is damaged, or names classes of modules that are not allowed; the message names both.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> run = lightning_snn.load_run("runs/sbnn_dvs/2026-01-31_12-00-00_seed0")  # doctest: +SKIP
        >>> Trainer(logger=False).test(run.module, run.data)  # doctest: +SKIP
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"Expected argument `folder` to be the folder of a recipe's run, but {folder} has no {CONFIG}. Give the "
            "folder that the recipe printed as the one in which the run is kept"
        )
    name = checkpoint if checkpoint.endswith(".ckpt") else f"{checkpoint}.ckpt"
    path = folder / "checkpoints" / name
    if not path.is_file():
        found = sorted(each.name for each in path.parent.glob("*.ckpt"))
        raise FileNotFoundError(
            f"Expected argument `checkpoint` to name a checkpoint of {folder}, but got {checkpoint!r}. It has "
            f"{', '.join(found) or 'none: the run was not started, or trained without checkpoints'}"
        )
    import_from_working_folder()
    file = folder / CONFIG
    config = read_options(file)
    with reading(file, "the options of a run", "Load the checkpoint with SpikingModule.load_from_checkpoint"):
        options = config["data"]
    check_import_paths(options, allow, str(file))
    check_checkpoint(path)
    module = SpikingModule.load_from_checkpoint(path, map_location, allow=allow)
    return LoadedRun(module.eval(), build_data(options), config, folder)


def build_data(options: dict[str, Any]) -> FrameDataModule:
    """Return the data module of a class and its options; nothing is read.

    Args:
        options: `class_path` and `init_args`.

    Raises:
        ValueError: if there is no such class, or an option is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FrameDataModule, "data")
    try:
        parsed = parser.parse_object({"data": options})
    except ArgumentError as error:
        raise ValueError(f"Expected options of a data module, but {error}") from error
    data = parser.instantiate_classes(parsed).data
    assert isinstance(data, FrameDataModule)
    return data


def saved_input_shape(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return the shape of a frame that the network or the method of a checkpoint was built for; None if unknown.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged.
    """
    saved = build_options(path, SpikingModule)
    for group in ("network", "method"):
        shape = ((saved.get(group) or {}).get("init_args") or {}).get("input_shape")
        if shape is not None:
            return (shape,) if isinstance(shape, int) else tuple(shape)
    return None
