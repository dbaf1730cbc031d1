"""Docstrings of the package: their examples run, nothing public lacks one, and they begin as documentation does."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import random
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.examples import names_of_examples
from tests.support.optional import skip_without_libraries
from tests.support.triton import import_or_skip

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = re.compile(r"(What|Which|Whether|Where|How|When)\b")


def modules(containing: str = "") -> Iterator[str]:
    for path in sorted((ROOT / "lightning_snn").rglob("*.py")):
        if containing in path.read_text() and path.name != "__main__.py":
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def examples(module: ModuleType, names: Mapping[str, Any]) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(module, globs={**names, **vars(module)})
    return [test for test in found if test.examples]


def run_examples(tests: list[doctest.DocTest]) -> list[str]:
    """Return the reports of the examples that fail."""
    reports: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        torch.manual_seed(0)
        runner.run(test, out=reports.append)
    return reports


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("examples use no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", list(modules(">>> ")))
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)
    tests = examples(import_or_skip(name), names_of_examples())
    assert tests
    skip_without_libraries("".join(example.source for test in tests for example in test.examples))
    reports = run_examples(tests)
    assert not reports, "".join(reports)


def test_an_example_with_another_result_or_an_error_is_reported():
    module = ModuleType("module")
    module.__doc__ = ">>> nn.Linear(1, 2).weight.shape\ntorch.Size([2, 1])\n"
    assert run_examples(examples(module, names_of_examples())) == []
    module.__doc__ = ">>> 1 + 1\n3\n\n>>> undefined\n"
    assert len(run_examples(examples(module, {}))) == 2


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def undocumented(module: ModuleType) -> list[str]:
    """Return the public functions and classes of a module and their methods and properties without a docstring.

    What overrides something that has a docstring needs none.
    """
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) and not value.__doc__:
            found.append(name)
        if inspect.isclass(value):
            generated = f"{name}("  # of a dataclass or a named tuple
            if (vars(value).get("__doc__") or generated).startswith(generated):
                found.append(name)
            found += [f"{name}.{member}" for member in _undocumented_members(value)]
    return found


def _undocumented_members(kind: type) -> Iterator[str]:
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
        if name.startswith("_") or not inspect.isfunction(function) or function.__doc__:
            continue
        if function.__qualname__ != f"{kind.__qualname__}.{name}":
            continue  # a function that is given as an attribute
        if not any(getattr(getattr(base, name, None), "__doc__", None) for base in kind.__mro__[1:]):
            yield name


@pytest.mark.parametrize("name", list(filter(is_public, modules())))
def test_everything_public_has_a_docstring(name: str):
    assert undocumented(import_or_skip(name)) == []


def test_what_has_no_docstring_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sample_without.py").write_text(
        "from dataclasses import dataclass\nfrom functools import cached_property\nfrom torch import nn\n"
        "def one(): ...\n"
        "def _two(): ...\n"
        "class Three:\n    'Three.'\n"
        "    def four(self): ...\n"
        "    @property\n    def five(self): ...\n"
        "    @cached_property\n    def six(self): ...\n"
        "    @staticmethod\n    def seven(): ...\n"
        "    @classmethod\n    def eight(cls): 'Eight.'\n"
        "class Nine(Three):\n    'Nine.'\n"
        "    def eight(self): ...\n"
        "    def four(self): ...\n"
        "class Ten(nn.Module):\n    'Ten.'\n    def forward(self): ...\n"
        "@dataclass\nclass Eleven:\n    x: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    members = ["Three.four", "Three.five", "Three.six", "Three.seven", "Nine.four"]
    assert undocumented(importlib.import_module("sample_without")) == ["one", *members, "Eleven"]


def questions(path: Path) -> list[str]:
    """Return the functions, private ones too, whose docstring begins with a question word."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return [node.name for node in functions if QUESTIONS.match(ast.get_docstring(node) or "")]


@pytest.mark.parametrize("name", list(modules()))
def test_no_docstring_of_a_function_begins_with_a_question_word(name: str):
    spec = importlib.util.find_spec(name)  # the source is read, not run
    assert spec is not None
    assert spec.origin is not None
    assert questions(Path(spec.origin)) == []


def test_a_question_word_is_found(tmp_path: Path):
    path = tmp_path / "sample.py"
    path.write_text("def one():\n    '''What it is.'''\nclass A:\n    def two(self):\n        '''Return whether.'''\n")
    assert questions(path) == ["one"]
