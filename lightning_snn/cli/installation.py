"""The installation as text: versions, devices, kernels, and the extras with what they are for."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement

from lightning_snn import __version__, kernels

DISTRIBUTION = "lightning-snn"
EXTRAS = {
    "events": "files of Spiking Heidelberg Digits (HDF5) and of DV cameras (AEDAT 4.0), and the readers of tonic",
    "nir": "networks as NIR files, in and out",
    "spikingjelly": "networks of SpikingJelly, with `pip install --no-deps spikingjelly==2.0.0`",
    "neurobench": "the benchmark harness NeuroBench",
    "augmentation": "AutoAugment of images",
    "completion": "completion of commands and options in a shell",
}
"""what each extra is for, except for those of contributors"""
# what an extra cannot bring along, because its own requirements must be left out
_BY_HAND = {"spikingjelly": ["spikingjelly"]}
_SHOWN = ("torch", "lightning", "torchmetrics", "numpy", "jsonargparse", "snntorch", "wandb", "matplotlib", "triton")


def describe() -> str:
    """Return versions, devices, kernels, and extras as text."""
    versions = {"lightning_snn": __version__, "python": f"{platform.python_version()}, {platform.platform()}"}
    versions |= {name: _version(name) or "not installed" for name in _SHOWN}
    sections = {"Versions": versions, "Devices": _devices(), "Kernels": _kernels(), "Extras": dict(_extras())}
    width = max(len(name) for rows in sections.values() for name in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])
        for title, rows in sections.items()
    )


def missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed, or not in a version that it takes.

    Raises:
        PackageNotFoundError: if this library was not installed by an installer, so that its extras are unknown.
        ValueError: if the installed version has no such extra.
    """
    if extra not in (metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []):
        raise ValueError(f"Expected one of the extras of {DISTRIBUTION}, but got {extra!r}")
    found = [name for name in _BY_HAND.get(extra, ()) if _version(name) is None]
    for text in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        version = _version(requirement.name)
        if version is None:
            found.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name}{requirement.specifier} instead of {version}")
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability "
            f"{properties.major}.{properties.minor}"
        )
    if not torch.cuda.is_available():
        built = "a build for CPUs" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        devices["cuda"] = f"none (torch is {built})"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _kernels() -> dict[str, str]:
    try:
        return {name: f"{choice.implementation}: {choice.reason}" for name, choice in kernels().items()}
    except (RuntimeError, ValueError) as error:  # of the environment variable that chooses them
        return {"error": str(error)}


def _extras() -> Iterator[tuple[str, str]]:
    for extra, purpose in EXTRAS.items():
        try:
            lacking = missing(extra)
        except metadata.PackageNotFoundError:
            yield "unknown", f"{DISTRIBUTION} was not installed by pip or uv, so what its extras need is not known"
            return
        except ValueError:  # a checkout whose version was installed before it had this extra
            yield extra, f"unknown to the installed version of {DISTRIBUTION} ({purpose})"
            continue
        install = f"; pip install '{DISTRIBUTION}[{extra}]'"
        state = f"missing {', '.join(lacking)}{install}" if lacking else "installed"
        yield extra, f"{state} ({purpose})"
