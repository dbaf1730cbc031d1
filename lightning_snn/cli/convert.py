"""Conversion of the checkpoints of recipes to NIR files, and back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_snn.callbacks.hardware import HardwareConstraints
from lightning_snn.checkpoint_io import AtomicCheckpointIO
from lightning_snn.cli.choices import import_from_working_folder, import_path
from lightning_snn.cli.command import ignore_messages
from lightning_snn.cli.load import saved_input_shape
from lightning_snn.cli.nir_files import SUFFIX
from lightning_snn.cli.reading import check_checkpoint
from lightning_snn.convert import NIRNetwork, read_nir, to_nir, write_nir
from lightning_snn.convert.nir.graph import ordered
from lightning_snn.methods import SurrogateGradient
from lightning_snn.module import SpikingModule

_CHECKPOINT = ".ckpt"


def convert(options: argparse.Namespace) -> Path:
    """Convert a checkpoint to a NIR file, or a NIR file to a checkpoint.

    Args:
        options: those of `lightning_snn.cli.commands.convert`.

    Returns:
        The file that was written.

    Raises:
        FileExistsError: if it exists, and is not to be overwritten.
        ImportError: if the package nir is not installed.
        OSError: if a file cannot be read or written; the message names it.
        ValueError: if the files are no such pair, IN is damaged, or its network cannot be converted.
    """
    kinds = options.source.suffix, options.target.suffix
    if kinds not in ((_CHECKPOINT, SUFFIX), (SUFFIX, _CHECKPOINT)):
        raise ValueError(
            f"Expected IN and OUT to be a checkpoint ({_CHECKPOINT}) and a NIR file ({SUFFIX}), in any order, but got "
            f"{options.source} and {options.target}"
        )
    if os.path.lexists(options.target) and not options.overwrite:
        raise FileExistsError(
            f"Expected OUT to be a new file, but {options.target} exists. Choose another name, or pass --overwrite"
        )
    return _to_nir(options) if kinds[1] == SUFFIX else _to_checkpoint(options)


def _to_nir(options: argparse.Namespace) -> Path:
    import_from_working_folder()
    check_checkpoint(options.source)
    module = SpikingModule.load_from_checkpoint(options.source, "cpu", allow=options.allow)
    network: nn.Module = module
    if options.sample is not None:
        draw = getattr(module.method, "posterior_sample", None)
        if draw is None:
            raise ValueError(
                f"Expected a checkpoint with a posterior for --sample, but its method is {type(module.method).__name__}"
            )
        network = draw(module.network, torch.Generator().manual_seed(options.sample))
    quantization = None
    if options.weight_bits is not None:
        quantization = HardwareConstraints(weight_bits=options.weight_bits, weight_ranges=options.weight_ranges)
    shape = options.input_shape or saved_input_shape(options.source)
    if shape is None:
        raise ValueError(
            f"Expected option --input_shape, because {options.source} does not hold the shape of a sample. Give it, "
            "such as 2,34,34"
        )
    graph = to_nir(network.eval(), shape, options.dt or 1e-4, not options.at_or_above, quantization)
    return write_nir(options.target, graph)


def _to_checkpoint(options: argparse.Namespace) -> Path:
    path = options.source.absolute()
    strict = False if options.at_or_above else None
    ends = ordered(read_nir(path))
    outputs = ends.output_shape
    if outputs is None or len(outputs) != 1 or outputs[0] < 2:
        raise ValueError(
            f"Expected {path} to have the outputs of at least two classes, [C], but got "
            f"{None if outputs is None else list(outputs)}. Train it in Python: "
            '`SpikingModule(lightning_snn.convert.from_nir(path), task="regression")`'
        )
    module = SpikingModule(NIRNetwork(path, options.dt, options.reset, strict), num_classes=outputs[0])
    # plain data, from which `SpikingModule.load_from_checkpoint(path)` rebuilds network and method
    shape = None if ends.input_shape is None else list(ends.input_shape)
    given = {"path": str(path), "dt": options.dt, "reset": options.reset, "strict": strict, "input_shape": shape}
    module.hparams.update(
        network={"class_path": import_path(NIRNetwork), "init_args": given},
        method={"class_path": import_path(SurrogateGradient), "init_args": {}},
        _instantiator="lightning.pytorch.cli.instantiate_module",
    )
    ignore_messages()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, plugins=[AtomicCheckpointIO()], **quiet)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(options.target, weights_only=True)
    return Path(options.target)
