"""BibTeX entries of what a run used: its learning rule, its data, and this library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_snn import __version__
from lightning_snn.checkpoint_io import build_options
from lightning_snn.cli.choices import GROUPS, import_from_working_folder
from lightning_snn.cli.folders import CONFIG
from lightning_snn.cli.reading import check_checkpoint, read_options
from lightning_snn.cli.resume import run_of_checkpoint
from lightning_snn.import_paths import check_import_paths
from lightning_snn.module import SpikingModule

LIBRARY = f"""@software{{lightning_snn,
  title = {{lightning_snn: spiking neural networks in {{PyTorch}} {{Lightning}} with interchangeable learning rules}},
  author = {{{{The authors of lightning_snn}}}},
  version = {{{__version__}}}
}}"""
"""BibTeX entry of this library, as in its CITATION.cff"""


def citations(path: Path, allow: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return what a run used, each with its BibTeX entry, which is empty where there is no publication.

    Args:
        path: a configuration file, a checkpoint of a recipe, or the folder of a run. The data of a checkpoint are those
            of the `config.yaml` that its run wrote.
        allow: modules of your own whose classes the file may name. They are imported and run.

    Raises:
        OSError: if the file cannot be read; the message names it.
        ValueError: if it is damaged, names no method, or names classes of modules that are not allowed.
    """
    path = path / CONFIG if path.is_dir() else path
    options = _options_of_checkpoint(path) if path.suffix == ".ckpt" else read_options(path)
    import_from_working_folder()
    found = []
    for group, part in (("method", "learning rule"), ("data", "data")):
        kind = _chosen_class(group, options, path, allow)
        if kind is not None:
            entry = getattr(kind, "citation", "")
            found.append((f"{part}: {kind.__name__}" + ("" if entry else ", which names no publication"), entry))
        elif group == "method":
            raise ValueError(
                f"Expected {path} to name a method, as the {CONFIG} and the checkpoints of recipes do, but it names "
                "none. Give such a file"
            )
        else:
            found.append((f"{part}: not named by {path}", ""))
    return [*found, ("library", LIBRARY)]


def _options_of_checkpoint(path: Path) -> dict[str, Any]:
    check_checkpoint(path)
    run = run_of_checkpoint(path)
    data = {} if run is None else {"data": read_options(run.config).get("data")}
    return {**build_options(path, SpikingModule), **data}


def _chosen_class(group: str, options: dict[str, Any], path: Path, allow: Sequence[str]) -> type | None:
    chosen = options.get(group)
    name = chosen.get("class_path") if isinstance(chosen, dict) else chosen
    if name is None:
        return None
    check_import_paths({"class_path": name} if "." in str(name) else {}, allow, str(path))
    try:
        return GROUPS[group].find(name)
    except ValueError as error:
        raise ValueError(f"Expected {path} to name a class as {group}, but it names {name!r} ({error})") from error
