"""The matrix prints what was tested, and the table of exceptions names promises and rows that exist."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.contract.exceptions import EVERY, EXCEPTIONS
from tests.contract.matrix import Matrix
from tests.contract.table import METHOD_RUNS, METHODS, RUNS


def modules() -> Iterator[ModuleType]:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        yield importlib.import_module(f"tests.contract.{path.stem}")


def promises(module: ModuleType) -> dict[str, Any]:
    tests = {name: value for name, value in vars(module).items() if name.startswith("test_")}
    return {name: test for name, test in tests.items() if "row" in inspect.signature(test).parameters}


def test_every_exception_names_a_promise_and_a_row_and_has_a_reason():
    rows = {
        name.removeprefix("test_"): {EVERY, *(row.name for row in module.TABLE)}
        for module in modules()
        for name in promises(module)
    }
    unknown = {
        (promise, row) for promise in EXCEPTIONS for row in EXCEPTIONS[promise] if row not in rows.get(promise, ())
    }
    assert unknown == set()
    assert all(len(why) > 10 for exceptions in EXCEPTIONS.values() for why in exceptions.values())


def test_every_promise_about_methods_says_in_a_sentence_what_it_compares():
    kept = [
        test
        for module in modules()
        if getattr(module, "TABLE", None) in (METHODS, METHOD_RUNS, RUNS)
        for test in promises(module).values()
    ]
    assert len(kept) > 50
    assert [test.__name__ for test in kept if not (test.__doc__ or "").strip().endswith(".")] == []


def test_the_test_command_runs_a_row_of_each_method():
    def kinds(rows: Any) -> set[type]:
        return {type(row.make()) for row in rows}

    assert kinds(row for row in RUNS if not row.slow) == kinds(METHODS)


def report(promise: str, row: str, outcome: str, when: str = "call", reason: str | None = None) -> Any:
    properties = [("table", "Methods"), ("promise", promise), ("row", row)]
    made = SimpleNamespace(user_properties=properties, outcome=outcome, when=when, skipped=outcome == "skipped")
    if reason is not None:
        made.wasxfail = reason
    return made


def test_the_matrix_shows_each_cell_with_the_worst_outcome_and_every_reason():
    matrix = Matrix()
    for each in (
        report("it_holds", "one", "passed", when="setup"),
        report("it_holds", "one", "passed"),
        report("it_holds", "one", "failed"),
        report("it_holds", "two", "passed"),
        report("it_holds", "two", "skipped", reason="it cannot"),
        report("it_lasts", "one", "passed"),
        report("it_lasts", "two", "failed", when="setup"),
        report("it_fits", "two", "skipped", when="setup"),
        SimpleNamespace(user_properties=[], outcome="failed", when="call"),
    ):
        matrix.pytest_runtest_logreport(each)
    text = "\n".join(matrix.lines())
    assert "  a  one\n  b  two\n" in text
    assert "  Fx  it holds\n  .F  it lasts\n   -  it fits\n" in text
    assert "- it holds: two: it cannot\n" in text
    assert text.endswith("All cells: 5 cells, 1 kept (.), 1 exception (x), 2 fails (F), 1 skipped (-)")
