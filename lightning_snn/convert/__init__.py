"""Networks of other libraries: in and out. Nothing of them is imported before a network of theirs is converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_snn.convert.converted import Converted
    from lightning_snn.convert.neurobench import to_neurobench
    from lightning_snn.convert.neurons import SnntorchLIF
    from lightning_snn.convert.nir.exporter import to_nir
    from lightning_snn.convert.nir.files import read_nir, write_nir
    from lightning_snn.convert.nir.importer import from_nir
    from lightning_snn.convert.nir.network import NIRNetwork
    from lightning_snn.convert.snntorch.exporter import to_snntorch
    from lightning_snn.convert.snntorch.importer import from_snntorch
    from lightning_snn.convert.spikingjelly.exporter import to_spikingjelly
    from lightning_snn.convert.spikingjelly.importer import from_spikingjelly
    from lightning_snn.convert.surrogates import Scaled

__all__ = [
    "Converted",
    "NIRNetwork",
    "Scaled",
    "SnntorchLIF",
    "from_nir",
    "from_snntorch",
    "from_spikingjelly",
    "read_nir",
    "to_neurobench",
    "to_nir",
    "to_snntorch",
    "to_spikingjelly",
    "write_nir",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Converted": "lightning_snn.convert.converted",
        "NIRNetwork": "lightning_snn.convert.nir.network",
        "Scaled": "lightning_snn.convert.surrogates",
        "SnntorchLIF": "lightning_snn.convert.neurons",
        "from_nir": "lightning_snn.convert.nir.importer",
        "from_snntorch": "lightning_snn.convert.snntorch.importer",
        "from_spikingjelly": "lightning_snn.convert.spikingjelly.importer",
        "read_nir": "lightning_snn.convert.nir.files",
        "to_neurobench": "lightning_snn.convert.neurobench",
        "to_nir": "lightning_snn.convert.nir.exporter",
        "to_snntorch": "lightning_snn.convert.snntorch.exporter",
        "to_spikingjelly": "lightning_snn.convert.spikingjelly.exporter",
        "write_nir": "lightning_snn.convert.nir.files",
    },
)
