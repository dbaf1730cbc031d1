"""Descriptions of networks and methods besides their parameters: classes and constants, plain data for checkpoints."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

Description = dict[str, dict[str, Any]]

_PLAIN = (bool, int, float, str, type(None))


def describe_network(network: nn.Module) -> Description:
    """Return class and constants of every layer.

    Args:
        network: the network before a method prepares it.

    Returns:
        For the name of each layer ("" is the network) the result of `describe_layer`.

    Example:
        >>> describe_network(nn.Sequential(nn.Flatten(), LIF(beta=0.5)))["1"]["beta"]
        0.5
    """
    return {name: describe_layer(layer) for name, layer in network.named_modules()}


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """Return class and constants of a layer, without its sublayers.

    Constants are its public attributes that are plain data, functions, classes or dataclasses, and its `fixed_numbers`
    if it has any, as neurons do. Parameters and buffers are left out, because a state dict holds them.

    Example:
        >>> describe_layer(nn.Dropout(0.2))
        {'class': 'Dropout', 'p': 0.2, 'inplace': False}
    """
    constants = {
        name: _plain(value)
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and not _is_stored(value)
    }
    return {"class": type(layer).__name__, **constants, **getattr(layer, "fixed_numbers", {})}


def describe_options(value: Any) -> dict[str, Any]:
    """Return the class of a method or task and the arguments of its constructor that it keeps under their names.

    Modules among them, such as the task that another one wraps, are described in the same way.

    Example:
        >>> describe_options(lightning_snn.methods.SpikingBayes(samples=4))["samples"]
        4
    """
    names = [name for name in inspect.signature(type(value).__init__).parameters if name != "self"]
    kept = {**vars(value), **(value._modules if isinstance(value, nn.Module) else {})}
    return {"class": type(value).__name__} | {name: _plain(kept[name]) for name in names if name in kept}


def describe_function(function: Any) -> Any:
    """Return the name of a function, or class and options of a callable object.

    Example:
        >>> describe_function(lightning_snn.methods.ActivityPenalty(0.1))
        {'class': 'ActivityPenalty', 'target_rate': 0.1, 'weight': 1.0}
    """
    plain = inspect.isroutine(function) or isinstance(function, type)
    return _plain(function) if plain else describe_options(function)


def differences(saved: Mapping[str, Mapping[str, Any]], current: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each entry or constant that differs.

    Constants that only one side knows are not compared, because releases add attributes.

    Example:
        >>> differences({"1": {"class": "LIF", "beta": 0.5}}, {"1": {"class": "LIF", "beta": 0.9}})
        ['1 (LIF): beta is 0.5 in the checkpoint and 0.9 here']
    """
    lines = []
    for name in dict.fromkeys((*saved, *current)):
        if name not in saved or name not in current:
            where, entry = ("here", current[name]) if name in current else ("in the checkpoint", saved[name])
            lines.append(f"{name} ({entry['class']}) is only {where}")
            continue
        old, new = saved[name], current[name]
        if old["class"] != new["class"]:
            lines.append(f"{name or 'network'} is a {old['class']} in the checkpoint and a {new['class']} here")
            continue
        lines += [
            f"{name or 'network'} ({old['class']}): {key} is {old[key]!r} in the checkpoint and {new[key]!r} here"
            for key in old
            if key in new and old[key] != new[key]
        ]
    return lines


def _is_stored(value: Any) -> bool:
    """Return whether a state dict or a submodule holds the value, or nothing plain describes it."""
    if isinstance(value, (tuple, list)):
        return any(_is_stored(each) for each in value)
    return not isinstance(value, _PLAIN) and not callable(value) and not dataclasses.is_dataclass(value)


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, nn.Module):
        return describe_options(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__qualname__
    return type(value).__name__
