"""``lightning-snn report RUN [RUN]``: the page of a run, or of two next to each other."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run; two are laid side by side")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="page to write; by default report.html in the folder of one run, or comparison.html for two",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run(options: argparse.Namespace) -> None:
    """Write the page, and print its path."""
    from lightning_snn.cli.report import report

    print(f"Wrote {report(options)}")
