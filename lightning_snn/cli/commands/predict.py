"""``lightning-snn predict CHECKPOINT DATA``: predictions as a CSV file, and their scores."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint of a recipe")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder or file that the data class of the run reads; an .npz file with the inputs of the network as x "
        "[N, T, ...], and perhaps y; or the name of the data class, for the data of the run",
    )
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace it if it exists")
    parser.add_argument("--set", choices=("train", "val", "test"), default="test", help="which part of the data")
    parser.add_argument(
        "--config", type=Path, help="options of the data; by default the config.yaml of the run of the checkpoint"
    )
    parser.add_argument("--batch_size", type=int, help="samples per batch; by default as in the run, or 64")
    parser.add_argument("--seed", type=int, default=0, help="of the samples that a prediction draws; by default 0")
    parser.add_argument("--accelerator", default="auto", help="device, as for a Trainer: auto, cpu, gpu, ...")
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="MODULE", help="modules of your own that the checkpoint may name"
    )


def run(options: argparse.Namespace) -> None:
    """Write the predictions, and print their scores."""
    from lightning_snn.cli.predictions import predict, summary, write_csv

    found = predict(options)
    write_csv(options.output, found)
    print(summary(found, options.output))
