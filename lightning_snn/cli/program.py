"""The program ``lightning-snn``, also ``python -m lightning_snn``: finds a sub-command, and runs it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_snn import __version__
from lightning_snn.checks import nearest_name
from lightning_snn.cli.commands import COMMANDS
from lightning_snn.cli.interrupts import CTRL_C, is_ctrl_c

NAME = "lightning-snn"
_SHELLS = ("bash", "zsh", "tcsh")
_COMPLETES = "_ARGCOMPLETE"  # set by argcomplete when a shell asks for completions


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command.

    Args:
        arguments: the command line, without the name of the program; None takes that of this process.

    Raises:
        SystemExit: with status 2 and a message, if names, options or files are wrong; with 130 after Ctrl-C; with 141
            if the reader of the output has ended.
    """
    try:
        _run([*(sys.argv[1:] if arguments is None else arguments)])
    except BrokenPipeError:
        # Python writes what is left of the output when it ends, and would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (KeyboardInterrupt, SystemExit) as stop:
        if not is_ctrl_c(stop) or getattr(stop, "code", None) == CTRL_C:
            raise
        print("\nStopped.", file=sys.stderr)
        sys.exit(CTRL_C)


def build_parser(chosen: str | None) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and that of every sub-command by name.

    Args:
        chosen: the sub-command whose options are added; None adds those of all.
    """
    # completion is that of the installed program
    started_as_module = chosen is not None and Path(sys.argv[0]).name == "__main__.py"
    parser = argparse.ArgumentParser(
        prog="python -m lightning_snn" if started_as_module else NAME,
        description="Spiking neural networks in PyTorch Lightning: recipes, and tools for their files.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lightning_snn {__version__}")
    parser.add_argument(
        "--print_completion",
        choices=[f"shtab-{shell}" for shell in _SHELLS],
        help="print the script that completes commands and options in a shell",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for command in COMMANDS.values():
        parsers[command.name] = subparsers.add_parser(
            command.name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}."
        )
        if chosen in (command.name, None):
            _module(command.name).add_arguments(parsers[command.name])
    return parser, parsers


def _run(arguments: list[str]) -> None:
    first = arguments[0] if arguments else "--help"
    completes = _COMPLETES in os.environ or first.startswith("--print_completion")
    parser, parsers = build_parser(None if completes else first)
    if _COMPLETES in os.environ and find_spec("argcomplete") is not None:
        import_module("argcomplete").autocomplete(parser)
    if not first.startswith("-") and first not in COMMANDS:
        parser.error(
            f"Expected a command, one of {', '.join(COMMANDS)}, but got {first!r}{nearest_name(first, COMMANDS)}"
        )
    options = parser.parse_args(arguments or [first])
    if options.print_completion is not None:
        _print_completion(parser, options.print_completion.removeprefix("shtab-"))
    elif options.command is None:
        parser.error(f"Expected a command, one of {', '.join(COMMANDS)}")
    else:
        try:
            _module(options.command).run(options)
        except BrokenPipeError:
            raise
        except COMMANDS[options.command].refusals as error:
            parsers[options.command].error(str(error))


def _module(command: str) -> Any:
    return import_module(COMMANDS[command].module)


def _print_completion(parser: argparse.ArgumentParser, shell: str) -> None:
    if find_spec("shtab") is None:
        parser.error(
            "Expected shtab to be installed, which writes completion scripts: pip install 'lightning-snn[completion]'"
        )
    print(import_module("shtab").complete(parser, shell))
