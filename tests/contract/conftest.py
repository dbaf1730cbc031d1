"""Every test of a promise takes a `row` and runs for all rows of its module's `TABLE`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.table import for_promise, name_of

FOLDER = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        promise = metafunc.function.__name__.removeprefix("test_")
        metafunc.parametrize("row", for_promise(metafunc.module.TABLE, promise))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the matrix the table, the promise and the row of each test."""
    for item in items:
        call = getattr(item, "callspec", None)
        here = item.path.is_relative_to(FOLDER)  # pytest hands over the tests of all folders
        if here and isinstance(item, pytest.Function) and call is not None and "row" in call.params:
            promise = item.function.__name__.removeprefix("test_")
            row = call.params["row"]
            properties = {"table": name_of(row), "promise": promise, "row": row.name}
            item.user_properties += properties.items()
