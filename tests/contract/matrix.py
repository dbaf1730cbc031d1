"""The matrix of promises: which row of a contract table keeps which promise.

`python -m tests.contract.matrix` runs all tests of the contract and prints the matrix at their end, with the reason of
every exception and the counts. Arguments are pytest's: `-m "not slow"` for the part of the test command, `-k clipping`
for some promises, `tests/contract/test_steps.py` for one file.
"""

from __future__ import annotations

import string
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

KEPT, EXCEPTION, FAILS, SKIPPED, NOT_RUN = ".xF- "
MEANINGS = {KEPT: "kept", EXCEPTION: "exception", FAILS: "fails", SKIPPED: "skipped"}
# of several tests of a cell, the first of these counts
_PRECEDENCE = FAILS + EXCEPTION + SKIPPED + KEPT
_LETTERS = string.ascii_letters + string.digits


@dataclass
class Matrix:
    """Pytest plugin that collects the outcome of every cell and prints the matrix.

    Attributes:
        outcomes: outcome of each (table, promise, row).
        reasons: rows of each (table, promise, reason) of an exception.
    """

    outcomes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    reasons: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        properties = dict(report.user_properties)
        if "promise" not in properties or (report.when != "call" and report.outcome == "passed"):
            return
        table, promise, row = (properties[name] for name in ("table", "promise", "row"))
        outcome = _outcome(report)
        seen = self.outcomes.get((table, promise, row), outcome)
        self.outcomes[table, promise, row] = min(seen, outcome, key=_PRECEDENCE.index)
        if outcome == EXCEPTION:
            rows = self.reasons.setdefault((table, promise, report.wasxfail), [])
            rows += [row] if row not in rows else []

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.ensure_newline()
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> Iterable[str]:
        """Yield the lines of the tables, each with its exceptions and counts."""
        for table in dict.fromkeys(table for table, _, _ in self.outcomes):
            yield from self._table(table)
        yield f"\nAll cells: {_counts(self.outcomes)}"

    def _table(self, table: str) -> Iterable[str]:
        cells = {(promise, row): value for (name, promise, row), value in self.outcomes.items() if name == table}
        rows = list(dict.fromkeys(row for _, row in cells))
        yield f"\n{table}\n"
        yield from (f"  {_LETTERS[index]}  {row}" for index, row in enumerate(rows))
        yield f"\n  {_LETTERS[: len(rows)]}"
        for promise in dict.fromkeys(promise for promise, _ in cells):
            outcomes = "".join(cells.get((promise, row), NOT_RUN) for row in rows)
            yield f"  {outcomes}  {promise.replace('_', ' ')}"
        exceptions = [(promise, reason, of) for (name, promise, reason), of in self.reasons.items() if name == table]
        if exceptions:
            yield "\n  Exceptions:"
        for promise, reason, of in exceptions:
            yield f"  - {promise.replace('_', ' ')}: {', '.join(of)}: {reason}"
        yield f"\n  {table}: {_counts(cells)}"


def _outcome(report: Any) -> str:
    if hasattr(report, "wasxfail"):
        return EXCEPTION if report.skipped else FAILS
    return {"passed": KEPT, "failed": FAILS, "skipped": SKIPPED}[report.outcome]


def _counts(outcomes: Mapping[Any, str]) -> str:
    counts = Counter(outcomes.values())
    listed = ", ".join(f"{counts[mark]} {meaning} ({mark})" for mark, meaning in MEANINGS.items())
    return f"{len(outcomes)} cells, {listed}"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = any(argument.split("::")[0].rstrip("/").startswith("tests") for argument in arguments)
    where = [] if chosen else ["tests/contract"]
    sys.exit(pytest.main(["-m", "", *where, *arguments], plugins=[Matrix()]))
