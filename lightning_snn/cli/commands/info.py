"""``lightning-snn info``: what a report of a problem should contain, and what is missing."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser: none."""


def run(options: argparse.Namespace) -> None:
    """Print versions, devices, kernels, and optional libraries that are missing."""
    from lightning_snn.cli.installation import describe

    print(describe())
