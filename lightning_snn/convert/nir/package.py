"""The package `nir`, which only these converters need."""

from __future__ import annotations

from typing import Any

KEY = "lightning_snn"
"""entry of a node's metadata that holds what NIR has no field for"""


def import_nir() -> Any:
    """Return the package `nir`.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        import nir
    except ImportError as error:
        raise ImportError(
            "Expected the package nir to be installed, which reading and writing NIR graphs needs: "
            "pip install 'lightning-snn[nir]'"
        ) from error
    return nir
