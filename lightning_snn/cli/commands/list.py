"""``lightning-snn list [KIND]``: names and one line each."""

from __future__ import annotations

import argparse
from functools import partial

from lightning_snn.cli.catalog import KINDS, catalog, known_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument(
        "kind",
        metavar="KIND",
        nargs="?",
        type=partial(known_name, "kind", KINDS),
        choices=KINDS,
        help=f"one of {', '.join(KINDS)}; by default all",
    )


def run(options: argparse.Namespace) -> None:
    """Print the names of a kind, or of all, with one line each."""
    kinds = KINDS if options.kind is None else (options.kind,)
    found = {kind: names for kind in kinds if (names := catalog(kind))}
    width = max((len(name) for names in found.values() for name in names), default=0)
    for number, (kind, names) in enumerate(found.items()):
        if options.kind is None:
            print(("\n" if number else "") + kind)
        for name, line in names.items():
            print(f"  {name:<{width}}  {line}".rstrip())
