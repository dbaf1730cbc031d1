"""Loading the runs of recipes, to go on with them in Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser

from lightning_snn.cli.choices import import_from_working_folder
from lightning_snn.cli.folders import CONFIG
from lightning_snn.cli.reading import check_checkpoint, read_options
from lightning_snn.data import FrameDataModule
from lightning_snn.module import SpikingModule


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
    folder: str | os.PathLike[str], checkpoint: str = "best", map_location: str | torch.device = "cpu"
) -> LoadedRun:
    """Rebuild the module and the data of a run of a recipe from its folder.

    Args:
        folder: folder of the run, which a recipe prints at its start.
        checkpoint: "best" or "last", or the name of another file in its folder `checkpoints`.
        map_location: device of the weights.

    Returns:
        Module, data module, options and folder. Classes of your own must be importable under the paths that the run
        was given; the working folder is searched too.

    Raises:
        FileNotFoundError: if the folder holds no run, or no such checkpoint.
        ValueError: if the configuration or the checkpoint is damaged.

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
    config = read_options(folder / CONFIG)
    check_checkpoint(path)
    module = SpikingModule.load_from_checkpoint(path, map_location=map_location, weights_only=True)
    return LoadedRun(module.eval(), _data(config["data"]), config, folder)


def _data(options: dict[str, Any]) -> FrameDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FrameDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": options})).data
    assert isinstance(data, FrameDataModule)
    return data
