"""Networks of any library where a file or a command names their class."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import nn

from lightning_snn.nn.conventions import converter_of
from lightning_snn.nn.time_wrappers import TimeWrapper


def converter_for(network: nn.Module) -> str | None:
    """Return the function that converts a network, by its import path; None if the network needs no conversion.

    Layers of other libraries within `nn.OverTime` and `nn.PerStep` stay as they are.

    Example:
        >>> import snntorch
        >>> converter_for(nn.Sequential(nn.Linear(4, 8), snntorch.Leaky(0.9, init_hidden=True)))
        'lightning_snn.convert.from_snntorch'
        >>> converter_for(nn.Sequential(nn.Linear(4, 8), LIF())) is None
        True
    """
    wrapped = {part for module in network.modules() if isinstance(module, TimeWrapper) for part in module.modules()}
    found = (converter_of(module) for module in network.modules() if module not in wrapped)
    return next((name for name in found if name is not None), None)


class Converted(nn.Sequential):
    """A network of another library, converted while it is built.

    It is for configuration files and checkpoints, which hold the class and arguments of a network. In Python call
    `from_snntorch` or `from_spikingjelly`.

    Args:
        network: a network of snntorch or SpikingJelly.

    Raises:
        ValueError: if the network has no layers of these libraries, or cannot be converted exactly.

    Example:
        >>> import snntorch
        >>> network = Converted(nn.Sequential(nn.Linear(4, 8), snntorch.Leaky(0.9, init_hidden=True)))
        >>> lightning_snn.run(network, torch.rand(5, 2, 4)).shape
        torch.Size([5, 2, 8])
    """

    def __init__(self, network: nn.Module) -> None:
        path = converter_for(network)
        if path is None:
            raise ValueError(
                "Expected argument `network` to have layers of snntorch or SpikingJelly, but got a "
                f"{type(network).__name__} without any. Use it as it is"
            )
        package, _, function = path.rpartition(".")
        convert: Callable[[nn.Module], nn.Module] = getattr(import_module(package), function)
        super().__init__(convert(network))
