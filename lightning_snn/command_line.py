"""Command lines: options by the names that they have there, and the command that started this process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options by dotted names, as on the command line: a class is an option, next to its own options.

    Args:
        options: options by group, as in the `config.yaml` of a run.

    Example:
        >>> flat_options({"data": {"class_path": "Gestures", "init_args": {"size": 32}}, "trainer": {"max_epochs": 3}})
        {'data': 'Gestures', 'data.size': 32, 'trainer.max_epochs': 3}
    """
    return dict(_flat(options, ""))


def _flat(options: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            inner = {key: part for key, part in value.items() if key != "init_args"} | (value.get("init_args") or {})
            found += _flat(inner, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}".removesuffix(".class_path"), value))
    return found


def program(arguments: Sequence[str] | None = None) -> list[str]:
    """Return the words of the command that started this process, without options; none in an interactive interpreter.

    Args:
        arguments: script and options; None takes those of this process.

    Example:
        >>> program(["train.py", "--epochs", "3"])
        ['python', 'train.py']
    """
    script = (arguments or sys.argv or [""])[0]
    if script in ("", "-", "-c") or Path(script).name in ("ipykernel_launcher.py", "colab_kernel_launcher.py"):
        return []
    return ["python", script] if script.endswith(".py") else [Path(script).name]


def started_with(arguments: Sequence[str] | None = None) -> str:
    """Return the command that started this process, as typed in a shell; empty in an interactive interpreter.

    Args:
        arguments: script and options; None takes those of this process.

    Example:
        >>> started_with(["train.py", "--name", "my run"])
        "python train.py --name 'my run'"
    """
    words = program(arguments)
    return shlex.join([*words, *(arguments or sys.argv)[1:]]) if words else ""
