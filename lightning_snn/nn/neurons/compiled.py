"""Steps of neurons as compiled code, for neurons whose scan is a loop over their equations.

`torch.compile` of a whole network unrolls the loop over T, so its first call takes longer for many steps and again for
every T. One step, compiled once and called T times, has neither cost: its operations become one kernel.
"""

from __future__ import annotations

from torch import nn

from lightning_snn.nn.neurons.base import Neuron


def compile_steps(network: nn.Module, enabled: bool = True) -> list[str]:
    """Compile the equations of a network's neurons, in place: charge, spike and what follows a spike as one kernel.

    Only neurons whose scan is a loop over their equations gain by it: `AdaptiveLIF`, `SynapticLIF`, `Recurrent` and
    neurons of one's own. `LIF` and `RecurrentLIF` have fused scans and stay as they are. Spikes and gradients are those
    of the loop, within rounding. The first call of a neuron compiles for some seconds, and needs a C++ compiler on the
    CPU.

    Compiled are the steps of scans, of streams, of noisy scans (not with an estimator whose weights are random), and of
    the spiking pass of `RateBackprop` with its derivatives, which is compiled for each size of a batch.

    The setting is a plain attribute, `Neuron.compiles_steps`: copies have it, state dicts do not. A `SpikingModule`
    takes a copy of a network, so call this before, or on `module.network`. It has no effect within `torch.compile`,
    exporters and the transforms of `torch.func`.

    Args:
        network: any module.
        enabled: False returns to the loop.

    Returns:
        The names of the neurons, in the order of registration; "" is the network itself.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), lightning_snn.nn.AdaptiveLIF(), nn.Linear(8, 3), LIF())
        >>> compile_steps(network)
        ['1']
    """
    found = []
    within: set[nn.Module] = set()  # neurons of neurons, whose equations are a part of the step of the outer one
    for name, module in network.named_modules():
        if isinstance(module, Neuron) and module not in within and type(module).scan is Neuron.scan:
            found.append(name)
            within.update(module.modules())
    for module in within:
        if isinstance(module, Neuron):
            module.compiles_steps = enabled
    return found
