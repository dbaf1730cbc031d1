"""Networks of other libraries: in and out. Nothing of them is imported before a network of theirs is converted."""

from lightning_snn.convert.converted import Converted
from lightning_snn.convert.neurons import SnntorchLIF
from lightning_snn.convert.snntorch_export import to_snntorch
from lightning_snn.convert.snntorch_import import from_snntorch
from lightning_snn.convert.spikingjelly_export import to_spikingjelly
from lightning_snn.convert.spikingjelly_import import from_spikingjelly
from lightning_snn.convert.surrogates import Scaled

__all__ = ["Converted", "Scaled", "SnntorchLIF", "from_snntorch", "from_spikingjelly", "to_snntorch", "to_spikingjelly"]
