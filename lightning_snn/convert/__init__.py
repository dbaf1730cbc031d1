"""Networks of other libraries: in and out.

Nothing is imported that is not installed: each converter imports its library when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_snn.convert.neurobench import to_neurobench
    from lightning_snn.convert.nir_export import to_nir
    from lightning_snn.convert.nir_files import read_nir, write_nir
    from lightning_snn.convert.nir_import import from_nir
    from lightning_snn.convert.nir_network import NIRNetwork

__all__ = ["NIRNetwork", "from_nir", "read_nir", "to_neurobench", "to_nir", "write_nir"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "NIRNetwork": "lightning_snn.convert.nir_network",
        "from_nir": "lightning_snn.convert.nir_import",
        "read_nir": "lightning_snn.convert.nir_files",
        "to_neurobench": "lightning_snn.convert.neurobench",
        "to_nir": "lightning_snn.convert.nir_export",
        "write_nir": "lightning_snn.convert.nir_files",
    },
)
