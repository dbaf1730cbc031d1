"""Classes that the command line chooses by name, and values that it needs before options are parsed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml
from torch import nn

from lightning_snn import data, methods, networks
from lightning_snn.checks import nearest_name
from lightning_snn.cli.catalog import catalog, invocation
from lightning_snn.cli.reading import read_options
from lightning_snn.data import FrameDataModule
from lightning_snn.methods import Method

_PATHS = ("output", "ckpt_path")  # never read as YAML, where a folder `on` would be true
_CONFIG = ("-c", "--config")
USAGE = "%(prog)s [--data NAME] [--network NAME] [--method NAME] [--GROUP.OPTION VALUE ...]"


class Group(NamedTuple):
    """Option group that selects a class.

    Attributes:
        title: heading in the help.
        package: package that holds the library's classes of the group.
        base: base class of all classes of the group.
    """

    title: str
    package: ModuleType
    base: type

    def classes(self) -> dict[str, type]:
        """Return the library's classes by name."""
        public = {name: getattr(self.package, name) for name in sorted(self.package.__all__)}
        return {name: kind for name, kind in public.items() if self.accepts(kind) and kind is not self.base}

    def accepts(self, kind: Any) -> bool:
        """Return whether ``kind`` is a class of this group."""
        return isinstance(kind, type) and issubclass(kind, self.base)

    def find(self, name: Any) -> type:
        """Return the class with a name in the library or with an import path.

        Raises:
            ValueError: if the library has no such name, or the module no such class.
            ImportError: if the module cannot be imported.
        """
        if isinstance(name, str) and name.endswith(".nir"):
            raise ValueError(
                "in a configuration file, the network of a NIR file has the `class_path` "
                "lightning_snn.convert.NIRNetwork, and among its `init_args` the path"
            )
        if not isinstance(name, str) or ("." not in name and name not in self.classes()):
            raise ValueError("no such name" + nearest_name(str(name), self.classes()))
        if "." not in name:
            return self.classes()[name]
        module, _, attribute = name.rpartition(".")
        kind = getattr(import_module(module), attribute, None)
        if not isinstance(kind, type) or not self.accepts(kind):
            near = nearest_name(attribute, (each for each in vars(import_module(module)) if not each.startswith("_")))
            raise ValueError(f"{module} has no such {self.base.__name__}{near}")
        return kind


class _AnyModule(type):
    """Type of `Network`: all modules are its subclasses, and only the networks of the library are found by name."""

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, nn.Module)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, nn.Module)

    def __subclasses__(cls) -> list[type]:
        return list(GROUPS["network"].classes().values())


class Network(metaclass=_AnyModule):
    """Any `nn.Module`.

    Every layer of every imported library is one, so names would be ambiguous, and messages would list all of them.
    """


GROUPS = {
    "data": Group("Data", data, FrameDataModule),
    "network": Group("Network", networks, Network),
    "method": Group("Method", methods, Method),
}


def chosen_classes(arguments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, type]:
    """Return the class that the command line chooses for each group.

    Classes are looked up before the options are parsed, because jsonargparse would pass options of the default class to
    the chosen class if their names agree, for example the image size of one data set to another.

    Args:
        arguments: the command line, without the program name.
        defaults: default name of each group; other keys are ignored.

    Raises:
        SystemExit: with status 2 and a message, if a group has no class of the chosen name.
    """
    names = {group: defaults[group] for group in GROUPS}
    for option, value in given_values(arguments, (*GROUPS, *(f"{group}.help" for group in GROUPS))):
        choice = option.removesuffix(".help")
        if value is not None:
            names[choice] = value.get("class_path", names[choice]) if isinstance(value, dict) else value
    classes = {}
    for name, group in GROUPS.items():
        try:
            classes[name] = group.find(names[name])
        except (ImportError, ValueError) as error:
            _scanner(()).error(
                f"Expected option --{name} to be one of {', '.join(group.classes())}, or the import path of a "
                f"{group.base.__name__}, but got {names[name]!r} ({error})"
            )
    return classes


def help_of_a_class(arguments: Sequence[str], classes: Mapping[str, type]) -> list[str]:
    """Return the argument that prints the options of a chosen class if one of ``--GROUP.help`` is given.

    Without a name, they are the options of the class that the other arguments choose.
    """
    asked = [option for option, _ in given_values(arguments, [f"{group}.help" for group in GROUPS])]
    return [f"--{option}={import_path(classes[option.removesuffix('.help')])}" for option in asked[:1]]


def without_options_of_other_classes(arguments: Sequence[str], classes: Mapping[str, type]) -> list[str]:
    """Return the arguments in which no configuration file gives options of a class that is not the chosen one.

    The parser would pass them on where the names agree, and with them replace the defaults that a recipe has for the
    chosen class.

    Args:
        arguments: the command line, without the program name.
        classes: chosen class of each group.
    """
    found: list[str] = []
    before = ""
    for argument in arguments:
        option, equals, path = argument.partition("=")
        if before in _CONFIG:
            found.append(_of_classes(argument, classes))
        elif option in _CONFIG and equals:
            found.append(f"{option}={_of_classes(path, classes)}")
        else:
            found.append(argument)
        before = argument
    return found


def _of_classes(path: str, classes: Mapping[str, type]) -> str:
    """Return a configuration file; as text without the groups of other classes, if it has any."""
    options = read_options(path)
    kept = {name: value for name, value in options.items() if not _is_of_other_class(name, value, classes)}
    return path if len(kept) == len(options) else json.dumps(kept)


def _is_of_other_class(group: str, value: Any, classes: Mapping[str, type]) -> bool:
    name = value.get("class_path") if isinstance(value, dict) else value
    if group not in classes or name is None:
        return False
    try:
        return GROUPS[group].find(name) is not classes[group]
    except (ImportError, ValueError):
        return False  # the parser reports it


def import_path(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def variants_switched_on(arguments: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the boolean options among `names` that the command line sets to true, before options are parsed."""
    last = dict(given_values(arguments, names))
    return [name for name in names if last.get(name) is True]


def import_from_working_folder() -> None:
    """Let import paths of options name modules of the working folder, which Python leaves out when it runs a script.

    The folder comes last, so that none of its files hides a module of the same name.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)


def with_switches_on(arguments: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the arguments in which a boolean option among `names` that stands without a value is true.

    Args:
        arguments: the command line, without the program name.
        names: names of the options.

    Example:
        >>> with_switches_on(["--small", "--seed_everything", "1", "--wandb"], ["small", "wandb"])
        ['--small=true', '--seed_everything', '1', '--wandb=true']
    """
    flags = {f"--{name}" for name in names}
    following = [*arguments, "-"][1:]
    return [
        f"{argument}=true" if argument in flags and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def given_values(arguments: Sequence[str], options: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the values of some options in the command line and its configuration files, in order.

    The value of a help option without a name is None.
    """
    options = list(options)
    for given in _scanner(options).parse_known_args(arguments)[0].given:
        yield from ((option, given[option]) for option in options if option in given)


def _scanner(options: Iterable[str]) -> argparse.ArgumentParser:
    scanner = argparse.ArgumentParser(shlex.join(invocation()), USAGE, add_help=False, allow_abbrev=False)
    for option in (*options, "config"):
        flags = _CONFIG if option == "config" else (f"--{option}",)
        settings: dict[str, Any] = {"nargs": "?", "const": {option: None}} if option.endswith(".help") else {}
        scanner.add_argument(
            *flags, dest="given", action="append", default=[], type=partial(_as_mapping, option), **settings
        )
    return scanner


def _as_mapping(option: str, text: str) -> dict[str, Any]:
    """Return an option as in a configuration file; an unreadable value is empty, and the parser reports the error."""
    if option in _PATHS:
        return {option: text}
    if option == "config":
        try:
            return read_options(text)
        except FileNotFoundError as error:
            near = nearest_name(Path(text).stem, catalog("configs"))
            raise argparse.ArgumentTypeError(f"{error}{near}") from error
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    try:
        return {option: yaml.safe_load(text)}
    except yaml.YAMLError:
        return {}
