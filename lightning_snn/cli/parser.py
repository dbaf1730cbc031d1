"""Parser of recipes: short help, and error messages with the nearest name."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from lightning_snn.checks import nearest_name

GROUP_HELP = ("data.help", "network.help", "method.help")
_UNACCEPTED = re.compile(r"Option '([^']+)' is not accepted")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --([^\s=]+)")
_CLASS_PATH = re.compile(r"class_path[ =]'([\w.]+)'")


class BriefHelp(DefaultHelpFormatter):
    """Help of jsonargparse without the lists of all subclasses and the help options of Trainer and module."""

    def add_argument(self, action: argparse.Action) -> None:
        """Add an option, except for the help options of Trainer and module."""
        if not action.dest.endswith(".help") or action.dest in GROUP_HELP:
            super().add_argument(action)

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r", known subclasses: .*\)", ")", super()._expand_help(action))


class RecipeParser(LightningArgumentParser):
    """Parser whose errors about unknown options name the nearest one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        # parsers of nested classes raise the error that the outermost one prints
        super().error(message + self._suggestion(message) if self.exit_on_error else message, ex)

    def _suggestion(self, message: str) -> str:
        unrecognized = _UNRECOGNIZED.search(message)
        if unrecognized is not None:
            # parts of the module that have groups of their own
            inner = re.sub(r"^model\.(?=(network|method)\.)", "", unrecognized[1])
            if inner != unrecognized[1]:
                return f"; did you mean --{inner}?"
            options = (name.removeprefix("--") for name in self._option_string_actions if name.startswith("--"))
            return nearest_name(unrecognized[1], options, prefix="--")
        unaccepted = _UNACCEPTED.search(message)
        classes = _CLASS_PATH.findall(message)
        if unaccepted is None or not classes:
            return ""
        # the innermost class is named last
        kind = imported_class(classes[-1])
        known = option_names(kind)
        name = unaccepted[1].rpartition(".")[2]
        return f". {kind.__name__} takes {', '.join(known) or 'no options'}{nearest_name(name, known)}"


def option_names(kind: type) -> list[str]:
    """Return the names of the options of a class, with those that it passes on to its base classes."""
    names: list[str] = LightningArgumentParser().add_class_arguments(kind, fail_untyped=False)
    return names


def imported_class(path: str) -> Any:
    """Return the class with an import path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
