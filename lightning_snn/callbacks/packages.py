"""The two packages of Lightning, `lightning.pytorch` and `pytorch_lightning`, whose classes are not related.

Callbacks are those of `lightning.pytorch`. A Trainer of either package takes them in its list of callbacks, because it
calls hooks by name. What they find out about modules, loggers, and other callbacks has to hold for both packages.
"""

from __future__ import annotations

import sys
from typing import TypeGuard, TypeVar

import lightning.pytorch as pl
from lightning_utilities.core.overrides import is_overridden

_Kind = TypeVar("_Kind")


def is_a(value: object, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Return whether a value is an instance of a class of `lightning.pytorch` or of its equivalent.

    Args:
        value: any value.
        kind: class of `lightning.pytorch`.

    Example:
        >>> is_a(pl.LightningModule(), pl.LightningModule), is_a(nn.Linear(2, 2), pl.LightningModule)
        (True, False)
    """
    return isinstance(value, _equivalents(kind))


def overrides(instance: object, method: str) -> bool:
    """Return whether a LightningModule or a data module, of either package, overrides a method.

    Lightning's own `is_overridden` raises an error for those of the other package.

    Args:
        instance: the module or data module; anything else, such as None, overrides nothing.
        method: name of a method of the base class.
    """
    bases = (*_equivalents(pl.LightningModule), *_equivalents(pl.LightningDataModule))
    base = next((each for each in bases if isinstance(instance, each)), None)
    return base is not None and is_overridden(method, instance, base)


def _equivalents(kind: type) -> tuple[type, ...]:
    """Return a class and its equivalent, which nothing can be an instance of before its module is imported."""
    other = sys.modules.get(kind.__module__.replace("lightning.pytorch", "pytorch_lightning", 1))
    return (kind,) if other is None else (kind, getattr(other, kind.__qualname__))
