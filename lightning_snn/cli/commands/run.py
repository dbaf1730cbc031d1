"""``lightning-snn run RECIPE [options]``: a recipe from any folder, as if its script were run by name."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from lightning_snn.checks import nearest_name
from lightning_snn.cli.catalog import catalog, known_name, recipe_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    recipes = tuple(catalog("recipes"))  # shtab takes a mapping for sub-commands
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        type=partial(_recipe, recipes),
        choices=recipes,
        help=f"one of {', '.join(recipes)}",
    )
    parser.add_argument(
        "options",
        metavar="...",
        nargs=argparse.REMAINDER,
        help="options of the recipe, which its own --help lists; --config also takes a name of `list configs`",
    )


def run(options: argparse.Namespace) -> None:
    """Run the script of a recipe in this process, as its main module."""
    script = recipe_folder() / f"{options.recipe}.py"
    # as Python does for a script; processes that a Trainer starts run the script itself
    sys.argv = [str(script), *with_shipped_configs(options.options)]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def _recipe(known: Collection[str], name: str) -> str:
    try:
        return known_name("recipe", known, name)
    except argparse.ArgumentTypeError as error:
        if nearest_name(name, known):
            raise
        # perhaps the value of an option that was given first
        raise argparse.ArgumentTypeError(f"{error}. Options come after the recipe") from error


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Return arguments whose ``--config NAME`` has the path of the configuration that comes with the recipes.

    A file of the working folder comes first.
    """
    known = catalog("configs")
    found: list[str] = []
    for argument in arguments:
        option, separator, value = argument.rpartition("=")
        given = option if separator else (found[-1] if found else "")
        name = value.removesuffix(".yaml")
        if given in ("-c", "--config") and name in known and not Path(value).is_file():
            argument = f"{option}{separator}{recipe_folder() / 'configs' / name}.yaml"
        found.append(argument)
    return found
