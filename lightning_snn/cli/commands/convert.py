"""``lightning-snn convert IN OUT``: checkpoints of recipes as NIR files, and back."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("source", metavar="IN", type=Path, help="a checkpoint of a recipe (.ckpt), or a NIR file")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write: .nir or .ckpt")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--dt", type=float, help="length of a time step in seconds; by default 1e-4, or as in the file")
    parser.add_argument("--reset", choices=("subtract", "zero"), help="to a checkpoint: reset of all neurons")
    parser.add_argument(
        "--input_shape", type=_shape, help="to NIR: shape of a sample, such as 2,34,34; by default as in the checkpoint"
    )
    parser.add_argument("--at_or_above", action="store_true", help="the other simulator spikes at v >= v_threshold")
    parser.add_argument("--sample", type=int, metavar="SEED", help="to NIR: a draw from the posterior, not its mean")
    parser.add_argument("--weight_bits", type=int, help="to NIR: quantize weights, with their integers in the metadata")
    parser.add_argument(
        "--weight_ranges", choices=("layer", "channel"), default="layer", help="ranges of --weight_bits"
    )
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="MODULE", help="modules of your own that the checkpoint may name"
    )


def run(options: argparse.Namespace) -> None:
    """Convert a file, and print the path of the other one."""
    from lightning_snn.cli.convert import convert

    print(f"Wrote {convert(options)}")


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))
