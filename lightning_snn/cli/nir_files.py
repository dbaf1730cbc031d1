"""Networks of NIR files on the command line: ``--network PATH.nir`` is `NIRNetwork` with that path."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lightning_snn.cli.choices import import_path
from lightning_snn.convert import NIRNetwork

SUFFIX = ".nir"
_OPTION = "--network"


def with_network_of_file(arguments: Sequence[str]) -> list[str]:
    """Return the arguments in which a NIR file as network is the class that reads it, and its path.

    The path becomes absolute, because it is part of the configuration and of the checkpoints of the run.

    Example:
        >>> with_network_of_file(["--network", "/nets/cnn.nir"])
        ['--network', 'lightning_snn.convert.nir.network.NIRNetwork', '--network.path', '/nets/cnn.nir']
    """
    found: list[str] = []
    before = ""
    for argument in arguments:
        path = argument if before == _OPTION else argument.removeprefix(f"{_OPTION}=")
        is_path = path.endswith(SUFFIX) and (before == _OPTION or path != argument)
        if is_path:
            found = found[:-1] if before == _OPTION else found
            found += [_OPTION, import_path(NIRNetwork), f"{_OPTION}.path", os.path.abspath(path)]
        else:
            found.append(argument)
        before = argument
    return found
