"""What the library offers, by kind and with one line each: read from its source, so that no class is imported."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lightning_snn.checks import nearest_name

_PACKAGE = Path(__file__).resolve().parents[1]
_MARKUP = re.compile(r"(:\w+:)?`+~?([^`]*)`+")


class _Classes(NamedTuple):
    """The public classes of a package.

    Attributes:
        package: its folder within the library.
        base: name of their base class, which is not listed; empty for all public classes.
    """

    package: str
    base: str


_CLASSES = {
    "methods": _Classes("methods", "Method"),
    "neurons": _Classes("nn/neurons", "StatefulLayer"),
    "networks": _Classes("networks", ""),
    "data": _Classes("data", "FrameDataModule"),
    "callbacks": _Classes("callbacks", "Callback"),
}
_ABSTRACT = {"neurons": ("Neuron",)}
KINDS = ("recipes", "configs", *_CLASSES)
"""names of all kinds, in the order of the command"""


def recipe_folder() -> Path:
    """Return the folder of the recipes: within the installed package, or next to it in a checkout."""
    shipped = _PACKAGE / "recipes"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "recipes"


def invocation() -> list[str]:
    """Return the words with which a user starts the recipe that runs in this process.

    They are ``python SCRIPT`` for a script, and ``lightning-snn run RECIPE`` for a recipe of the installed package.
    """
    script = Path(sys.argv[0])
    if (_PACKAGE / "recipes").is_dir() and script.resolve().parent == _PACKAGE / "recipes":
        return ["lightning-snn", "run", script.stem]
    return ["python", sys.argv[0]]


def known_name(what: str, known: Collection[str], name: str) -> str:
    """Return a name of the command line that is known; the first two arguments are bound, as the type of an option.

    Args:
        what: what it names, such as "kind".
        known: the names that there are.
        name: the name.

    Raises:
        ArgumentTypeError: if it is not known; names the nearest.

    Example:
        >>> known_name("kind", KINDS, "networks")
        'networks'
    """
    if name not in known:
        raise argparse.ArgumentTypeError(
            f"Expected a {what}, one of {', '.join(known)}, but got {name!r}{nearest_name(name, known)}"
        )
    return name


def catalog(kind: str) -> dict[str, str]:
    """Return the names of a kind, each with the first line of its documentation.

    Args:
        kind: one of `KINDS`.

    Raises:
        KeyError: if there is no such kind.

    Example:
        >>> catalog("neurons")["LIF"]
        'Leaky integrate-and-fire neurons, which take the place of a ReLU.'
    """
    if kind == "recipes":
        scripts = (path for path in sorted(recipe_folder().glob("*.py")) if not path.name.startswith("_"))
        return {path.stem: _first_line(ast.get_docstring(_tree(path))) for path in scripts}
    if kind == "configs":
        files = sorted((recipe_folder() / "configs").glob("*.yaml"))
        return {path.stem: _first_comment(path) for path in files}
    return dict(_public_classes(kind))


@cache
def _public_classes(kind: str) -> dict[str, str]:
    folder = _PACKAGE / _CLASSES[kind].package
    classes = {node.name: node for path in sorted(folder.rglob("*.py")) for node in _classes(path)}
    base = _CLASSES[kind].base
    hidden = (base, *_ABSTRACT.get(kind, ()))
    return {
        name: _first_line(ast.get_docstring(classes[name]))
        for name in sorted(_listed(folder / "__init__.py"), key=str.lower)
        if name in classes and name not in hidden and (not base or base in _bases(name, classes))
    }


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(path: Path) -> Iterator[ast.ClassDef]:
    yield from (node for node in _tree(path).body if isinstance(node, ast.ClassDef))


def _listed(path: Path) -> list[str]:
    """Return the names in `__all__` of a package."""
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ValueError(f"Expected {path} to list its public names in `__all__`, but it has none")


def _bases(name: str, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    """Yield the names of all base classes of a class, as far as they are in its package, and of the first outside."""
    for base in classes[name].bases if name in classes else ():
        found = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        yield found
        yield from _bases(found, classes)


def _first_line(text: str | None) -> str:
    line = (text or "").partition("\n")[0]
    # a reference to a class or function is its last name
    return _MARKUP.sub(lambda found: found[2] if found[1] in (None, ":math:") else found[2].rpartition(".")[2], line)


def _first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""
