"""Checkpoints of a `SpikingModule`: what they say of what trained them, and modules that differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_snn.methods.base import Method
from lightning_snn.methods.penalties import Penalty
from lightning_snn.nn.description import Description, describe_function, describe_network, describe_options, differences


def describe_module(network: nn.Module, method: Method) -> Description:
    """Return what determines the predictions of a module besides its parameters: network, method and task.

    Args:
        network: the network before the method prepares it.
        method: the method, with its task.

    Example:
        >>> describe_module(LIF(beta=0.5), lightning_snn.methods.SpikingBayes(samples=4))["method"]["samples"]
        4
    """
    return {
        **{f"network.{name}".rstrip("."): layer for name, layer in describe_network(network).items()},
        "method": describe_options(method),
        "task": describe_options(method.task),
    }


def describe_training(penalties: Mapping[str, Penalty]) -> Description:
    """Return what determines only the training of a module, which a resumed fit has to continue.

    Args:
        penalties: penalties by name.
    """
    described = {name: describe_function(penalty) for name, penalty in penalties.items()}
    return {"training": {"class": "SpikingModule", "penalties": described}}


def check_like_checkpoint(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise a ValueError that names each difference of a module from the one that was saved, if there are any.

    Args:
        saved: description in the checkpoint.
        current: description of the module.
    """
    if lines := differences(saved, current):
        listed = "".join(f"\n  {line}" for line in lines)
        raise ValueError(
            f"Expected a module like that of the checkpoint, but this one differs:{listed}\nBuild it with the values "
            "of the checkpoint, or load the parameters anyway with `strict=False` (of a Trainer, with "
            "`module.strict_loading = False`)"
        )


def without_network(cls: type, path: Any, error: Exception) -> ValueError:
    """Return the error for a checkpoint that holds no network which can be built.

    Args:
        cls: class of the module.
        path: of the checkpoint.
        error: what building the module raised.
    """
    name = Path(path).name if isinstance(path, (str, Path)) else "the file"
    return ValueError(
        f"Expected arguments `network=` and `method=` of {cls.__name__}.load_from_checkpoint, because the checkpoint "
        f"{name} holds none that can be built ({error}). Pass the network as it was given to the module; only "
        "checkpoints of recipes need neither"
    )
