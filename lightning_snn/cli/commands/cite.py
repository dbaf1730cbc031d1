"""``lightning-snn cite CONFIG|CHECKPOINT``: BibTeX entries of what a run used."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument(
        "source",
        metavar="CONFIG|CHECKPOINT",
        type=Path,
        help="a configuration file, such as the config.yaml of a run, a checkpoint of a recipe, or the folder of a run",
    )
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="MODULE", help="modules of your own that the file may name"
    )


def run(options: argparse.Namespace) -> None:
    """Print the entries, each after a comment that says what it is for."""
    from lightning_snn.cli.citations import citations

    print("\n\n".join(f"% {part}\n{entry}".rstrip() for part, entry in citations(options.source, options.allow)))
