"""Artifacts of a run in Weights & Biases: the posterior mean of its best checkpoint, and a NIR file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_snn.cli.wandb import WandbOptions
from lightning_snn.convert import to_nir, write_nir
from lightning_snn.convert.plain import plain_network
from lightning_snn.files import write_atomically
from lightning_snn.module import SpikingModule

POSTERIOR_MEAN, NIR_FILE = "posterior_mean.pt", "network.nir"


def check_artifacts(options: WandbOptions, module: SpikingModule, input_shape: Sequence[int]) -> None:
    """Raise an error if an artifact cannot be made of a module, as far as that is known before it is trained.

    The state of the random number generators is not changed. Layers whose shapes follow from the first batch are not
    checked.

    Args:
        options: the artifacts.
        module: the module.
        input_shape: shape of a sample of one time step.

    Raises:
        ValueError: if the method has no posterior mean, or NIR has no node for a layer; names it.
        ImportError: if a NIR file is to be kept, and the package nir is not installed.
    """
    if options.posterior_mean and not hasattr(module.method, "posterior_mean"):
        raise ValueError(
            "Expected a method whose posterior mean is a network for option --wandb.posterior_mean, but "
            f"{type(module.method).__name__} has none. Leave the option out; --wandb.log_model true keeps the weights"
        )
    if not options.nir or any(is_lazy(each) for each in (*module.parameters(), *module.buffers())):
        return
    with torch.random.fork_rng(devices=[]):
        try:
            to_nir(_plain_copy(module), input_shape)
        except ValueError as error:
            raise ValueError(f"{error}. Leave option --wandb.nir out, or choose other layers") from error


def keep_artifacts(
    options: WandbOptions,
    module: SpikingModule,
    input_shape: Sequence[int],
    folder: Path,
    logger: WandbLogger,
    metadata: Mapping[str, Any],
) -> list[Path]:
    """Write the posterior mean and the NIR file of a trained module, and log them as artifacts.

    W&B uploads the files from the folder of the run, at once or when the run is synced.

    Args:
        options: the artifacts.
        module: the module, with the weights of the best checkpoint.
        input_shape: shape of a sample of one time step.
        folder: folder of the run.
        logger: logger of the run.
        metadata: plain data that describe the artifacts.

    Returns:
        The files.

    Raises:
        OSError: if a file cannot be written; the message names it.
        ValueError: if NIR has no node for a layer; names it.
    """
    if not (options.posterior_mean or options.nir):
        return []
    import wandb

    network = _plain_copy(module)
    written = {}
    if options.posterior_mean:
        with write_atomically(folder / POSTERIOR_MEAN) as temporary:
            torch.save(network.state_dict(), temporary)
        written["posterior-mean"] = folder / POSTERIOR_MEAN
    if options.nir:
        written["nir"] = write_nir(folder / NIR_FILE, to_nir(network, input_shape))
    for name, path in written.items():
        artifact = wandb.Artifact(f"{name}-{logger.version}", "model", metadata=dict(metadata))
        # not copied into a folder outside of the run, which an offline run would need to be synced
        artifact.add_file(str(path.absolute()), policy="immutable")
        logger.experiment.log_artifact(artifact, aliases=["best"])
    return list(written.values())


def _plain_copy(module: SpikingModule) -> nn.Module:
    """Return a copy on the CPU of a module's network, with the posterior means of a Bayesian one."""
    return copy.deepcopy(plain_network(module)).cpu().eval()
