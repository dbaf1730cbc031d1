"""Arguments of the agents of sweeps, as options of a recipe."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

_WITHOUT_HYPHENS = re.compile(r"[A-Za-z_][\w.]*=")
_PATHS = ("--output", "--ckpt_path")  # taken as they are


def as_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line in which those of a sweep of W&B have the form of options.

    An agent replaces ``${args}`` in its command by ``--KEY=VALUE``, ``${args_no_equals}`` by ``--KEY VALUE`` and
    ``${args_no_hyphens}`` by ``KEY=VALUE``. Values are printed as Python does, so None is null, in lists and
    dictionaries too.

    Example:
        >>> as_options(["--wandb", "true", "method.lam=0.5", "--method.bias_epochs=None"])
        ['--wandb', 'true', '--method.lam=0.5', '--method.bias_epochs=null']
    """
    found: list[str] = []
    option = ""  # that takes the next argument as its value
    for argument in arguments:
        if not option and _WITHOUT_HYPHENS.match(argument):
            argument = f"--{argument}"
        name, equals, value = argument.partition("=")
        if option:
            found.append(argument if option in _PATHS else _as_yaml(argument))
        elif equals and name.startswith("--") and name not in _PATHS:
            found.append(f"{name}={_as_yaml(value)}")
        else:
            found.append(argument)
        option = argument if argument.startswith("-") and not equals and not option else ""
    return found


def _as_yaml(value: str) -> str:
    """Return a value that Python printed with None as YAML, and any other one as it is."""
    if "None" not in value:
        return value
    try:
        return json.dumps(ast.literal_eval(value))
    except (SyntaxError, TypeError, ValueError):
        return value
