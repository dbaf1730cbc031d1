"""Every public metric has an example in its docstring that runs and gives the value it states."""

from __future__ import annotations

import doctest
import sys
from types import ModuleType

import pytest

from lightning_snn import metrics
from lightning_snn.metrics import functional

TYPES = {"Kernel", "Positive", "Reduction", "Score"}
PUBLIC = [(module, name) for module in (metrics, functional) for name in module.__all__ if name not in TYPES]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_metric_has_an_example_with_a_value(module: ModuleType, name: str) -> None:
    thing = getattr(module, name)
    home = vars(sys.modules[thing.__module__])
    example = doctest.DocTestParser().get_doctest(thing.__doc__, dict(home), name, thing.__module__, 0)
    assert any(line.want or line.exc_msg for line in example.examples)
    assert doctest.DocTestRunner().run(example).failed == 0
