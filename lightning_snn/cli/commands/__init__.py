"""Sub-commands of ``lightning-snn``: one table, and one module each, imported when it is called."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Command"]


class Command(NamedTuple):
    """Sub-command of ``lightning-snn``.

    Attributes:
        name: its name on the command line.
        help: one line about it.
        module: module with the functions ``add_arguments(parser)`` and ``run(options)``. It imports torch and Lightning
            only within ``run``, so that the help of every command is fast.
        refusals: errors of ``run`` that end with their message and status 2; others end with a traceback.
    """

    name: str
    help: str
    module: str
    refusals: tuple[type[Exception], ...] = (ImportError, OSError, ValueError)


COMMANDS = {
    command.name: command
    for command in (
        Command("list", "list recipes, methods, neurons, networks, data and callbacks", f"{__name__}.list"),
        # what fails in a recipe after its options were read is an error of the program
        Command("run", "run a recipe, with its options", f"{__name__}.run", ()),
        Command("predict", "write the predictions of a checkpoint for data to a CSV file", f"{__name__}.predict"),
        Command("info", "print versions, devices, kernels, and optional libraries", f"{__name__}.info"),
        Command("cite", "print the BibTeX entries of what a run used", f"{__name__}.cite"),
        Command("report", "write the page of a run, or of two next to each other", f"{__name__}.report"),
        Command("convert", "convert a checkpoint to a NIR file, or a NIR file to a checkpoint", f"{__name__}.convert"),
    )
}
"""sub-commands by name, in the order of the help"""
