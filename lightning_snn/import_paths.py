"""Import paths in plain data of files: only those of modules that the caller allows are imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import yaml

TRUSTED = ("lightning_snn", "torch.nn", "torch.optim")
"""modules whose classes a file may name"""

_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


class Named(NamedTuple):
    """Import path in plain data.

    Attributes:
        path: the path, with at least one dot.
        is_class: whether it is given as a `class_path`, to be called with arguments that are in the data, too.
    """

    path: str
    is_class: bool


def check_import_paths(options: Any, allow: Sequence[str], source: str) -> None:
    """Raise an error if plain data, from which objects will be built, name anything of other modules.

    jsonargparse imports what a `class_path`, or a text in the place of a class or function, names, and calls classes
    with the arguments beside it. A file of unknown origin could run any installed code so. Nothing is imported here
    but modules that are allowed.

    Args:
        options: numbers, texts, lists and mappings, as read from a checkpoint or a YAML file.
        allow: modules that are allowed in addition to `TRUSTED`, with all that is below them.
        source: where the data are from, for the message.

    Raises:
        ValueError: names the import path and how to allow it.

    Example:
        >>> check_import_paths({"class_path": "torch.nn.Linear"}, allow=(), source="one.ckpt")
        >>> check_import_paths({"class_path": "subprocess.Popen"}, allow=(), source="one.ckpt")
        Traceback (most recent call last):
        ValueError: Expected one.ckpt to name classes of lightning_snn, torch.nn, torch.optim only, but it names ...
    """
    if isinstance(allow, str) or not all(isinstance(module, str) for module in allow):
        raise ValueError(f"Expected argument `allow` to be a list of names of modules, but got {allow!r}")
    trusted = (*TRUSTED, *allow)
    try:
        for path, is_class in _named(options):
            if not _within(path, trusted):
                if is_class or _importable(path):
                    raise _refused(source, path, path, allow)
                continue
            found = _resolved(path)
            home = _home(found)
            if found is not None and not _within(home, trusted):
                raise _refused(source, f"{path}, which is {home}", home, allow)
            if found is not None and is_class and not isinstance(found, type):
                raise ValueError(f"Expected {source} to name a class as `class_path`, but it names {path}")
    except RecursionError as error:
        raise ValueError(f"Expected {source} to hold options, but they are nested without end") from error


def _named(options: Any) -> Iterator[Named]:
    """Yield the import paths in plain data, also those within texts that are YAML themselves."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key == "class_path" and isinstance(value, str):
                yield Named(value, True)
            else:
                yield from _named(key)
                yield from _named(value)
    elif isinstance(options, (list, tuple, set, frozenset)):
        for value in options:
            yield from _named(value)
    elif isinstance(options, str):
        for text in _texts(options):
            # a type such as list[a.b] names others; in any other text only the whole is looked up
            found = _DOTTED.findall(text) if "[" in text else filter(_DOTTED.fullmatch, [text])
            yield from (Named(path, False) for path in found)


def _texts(text: str) -> Iterator[str]:
    """Yield a text, and what it holds if it is YAML, where escapes can hide a name."""
    yield text
    try:
        scalars = [event.value for event in yaml.parse(text) if isinstance(event, yaml.ScalarEvent)]
    except yaml.YAMLError:
        return
    for scalar in scalars:
        if scalar != text:
            yield from _texts(scalar)


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _importable(path: str) -> bool:
    """Return whether the first part of a path is a module: a text such as `digits.npz` names none."""
    first = path.partition(".")[0]
    try:
        return first == "__main__" or find_spec(first) is not None
    except ValueError:  # a module without a specification
        return True


def _resolved(path: str) -> Any:
    """Return the object with an import path in an allowed module, as jsonargparse finds it; None if there is none."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name, None)
        return found
    return None


def _home(found: Any) -> str:
    """Return the import path under which an object, or the class of an instance, was defined."""
    if isinstance(found, ModuleType):
        return found.__name__
    defined = found if hasattr(found, "__qualname__") else type(found)
    return f"{defined.__module__}.{defined.__qualname__}"


def _refused(source: str, found: str, path: str, allow: Sequence[str]) -> ValueError:
    module = path.rpartition(".")[0] or path
    return ValueError(
        f"Expected {source} to name classes of {', '.join((*TRUSTED, *allow))} only, but it names {found}. If you "
        f"trust the file, pass `allow={[*allow, module]}`"
    )
