"""Checkpoints of a `SpikingModule`: what they say of what trained them, and modules that differ from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_snn.methods.base import Method
from lightning_snn.methods.penalties import Penalty
from lightning_snn.methods.tasks import Task
from lightning_snn.nn.description import Description, describe_function, describe_network, describe_options, differences

_KINDS = {"classification": "Classification", "multi_label": "MultiLabel", "regression": "Regression"}


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
        **{_plain(f"network.{name}".rstrip(".")): layer for name, layer in describe_network(network).items()},
        "method": describe_options(method),
        "task": _describe_prediction(method.task),
    }


def describe_training(penalties: Mapping[str, Penalty], task: Task) -> Description:
    """Return what determines only the training of a module, which a resumed fit has to continue.

    Args:
        penalties: penalties by name.
        task: the task, whose loss is described here.
    """
    described = {name: describe_function(penalty) for name, penalty in penalties.items()}
    return {"training": {"class": "SpikingModule", "penalties": described, "task": describe_options(task)}}


def _describe_prediction(task: Task) -> dict[str, Any]:
    """Return what determines the predictions of a task: tasks that differ in their loss alone predict alike."""
    return {
        "class": _KINDS.get(task.kind, type(task).__name__),
        "readout": task.readout if isinstance(task.readout, str) else describe_function(task.readout),
        "num_classes": task.num_classes if task.kind != "regression" else None,
        "of_each_step": task.batch_axis == 1,
    }


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


_COMPILED = "_orig_mod"  # what `torch.compile(network)` names the network


def without_compiled_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with the names of a module of which no part is compiled.

    Example:
        >>> list(without_compiled_names({"network._orig_mod.0.weight": torch.zeros(())}))
        ['network.0.weight']
    """
    return _renamed(state_dict, _plain) if any(map(_is_compiled_name, state_dict)) else state_dict


def with_names_of(module: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state dict with the names of the module that loads it, if other parts were compiled when it was saved.

    Args:
        module: the module.
        state_dict: of the module, or of one with the same layers of which other parts are compiled.
    """
    modules = [name for name, _ in module.named_modules() if _is_compiled_name(name)]
    if not modules and not any(map(_is_compiled_name, state_dict)):
        return state_dict
    own = {_plain(name): name for name in modules}

    def rename(name: str) -> str:
        owner, _, last = _plain(name).rpartition(".")
        return own.get(_plain(name)) or (f"{own[owner]}.{last}" if owner in own else _plain(name))

    return _renamed(state_dict, rename)


def _renamed(state_dict: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    renamed: Any = OrderedDict((rename(name), value) for name, value in state_dict.items())
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        renamed._metadata = OrderedDict((rename(name), value) for name, value in metadata.items())
    return renamed  # type: ignore[no-any-return]


def _is_compiled_name(name: str) -> bool:
    return _COMPILED in name.split(".")


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)
