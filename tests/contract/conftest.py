"""Every test of a promise takes a `row` and runs for all rows of its module's `TABLE`."""

from __future__ import annotations

import pytest

from tests.contract.table import for_promise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        promise = metafunc.function.__name__.removeprefix("test_")
        metafunc.parametrize("row", for_promise(metafunc.module.TABLE, promise))
