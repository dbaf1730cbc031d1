"""The networks that e-prop trains: a chain of layers, from inputs over hidden neurons to a linear readout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lightning_snn.nn.layer_rules import LayerRules, Refusal
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import LeakyIntegrator, Neuron, Recurrent, RecurrentLIF, elementwise_refusal
from lightning_snn.nn.stateful import StatefulLayer

Feedback = Literal["symmetric", "random", "adaptive"]
FEEDBACKS = ("symmetric", "random", "adaptive")

_LAZY = "its parameters are not initialized: call `lightning_snn.run(network, x)` once"
_UNCHANGED = (nn.Identity, nn.Flatten)  # of spikes [T*B, N]
_SPACE = "an nn.Sequential: hidden neurons, then one nn.Linear as readout, then at most one LeakyIntegrator"

# recurrent neurons whose spikes are a field of the state and can be cut between steps
RECURRENT: LayerRules[bool] = LayerRules(
    unknown="neurons that receive each other's spikes in a way that e-prop does not know: use Recurrent"
)
for _kind in (Recurrent, RecurrentLIF):
    RECURRENT.register(_kind, True)


@dataclass(frozen=True)
class Chain:
    """Layers of a network in the order of their calls.

    Attributes:
        layers: the layers.
        hidden: positions of the hidden neurons.
        readout: position of the linear layer that is read out.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> chain = Chain.of(network)
        >>> chain.hidden, chain.readout
        ((1,), 2)
    """

    layers: tuple[nn.Module, ...]
    hidden: tuple[int, ...]
    readout: int

    @classmethod
    def of(cls, network: nn.Module) -> Chain:
        """Return the chain of a network that `chain_refusals` accepts."""
        layers = tuple(unnested(network))
        hidden = tuple(place for place, layer in enumerate(layers) if isinstance(layer, Neuron))
        linear = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        return cls(layers, hidden, linear[-1])

    @property
    def integrator(self) -> LeakyIntegrator | None:
        """Leaky integrator after the readout, None if there is none."""
        last = self.layers[-1]
        return last if isinstance(last, LeakyIntegrator) else None

    def readout_layer(self) -> nn.Linear:
        """Return the linear layer that is read out."""
        layer = self.layers[self.readout]
        assert isinstance(layer, nn.Linear)
        return layer

    def weights_of(self, place: int) -> nn.Linear | None:
        """Return the linear layer before hidden neurons, if only layers that change nothing are between."""
        before = place - 1
        while before >= 0 and isinstance(self.layers[before], nn.Identity):
            before -= 1
        layer = self.layers[before] if before >= 0 else None
        return layer if isinstance(layer, nn.Linear) else None

    def feedback_sizes(self) -> list[int]:
        """Return the number of neurons of each hidden layer."""
        sizes = []
        for place in self.hidden[:-1]:
            weights = self.weights_of(place)
            assert weights is not None
            sizes.append(weights.out_features)
        return [*sizes, self.readout_layer().in_features]


def chain_refusals(network: nn.Module, feedback: Feedback, streaming: bool) -> list[Refusal]:
    """Return what e-prop is not defined for in a network, with the reasons.

    Args:
        network: a plain module whose layers are known to mix no time steps but by their state.
        feedback: how errors reach hidden neurons.
        streaming: whether eligibility traces are explicit, which linear layers have alone.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 8), LIF(), nn.Linear(8, 3))
        >>> [str(refusal) for refusal in chain_refusals(network, "random", streaming=False)]
        []
        >>> [refusal.name for refusal in chain_refusals(network, "symmetric", streaming=False)]
        ['1']
    """
    names = {module: name for name, module in network.named_modules()}
    layers = unnested(network)
    hidden = [place for place, layer in enumerate(layers) if isinstance(layer, Neuron)]
    if not hidden or not _is_readout(layers[hidden[-1] + 1 :]):
        return [Refusal("", network, f"e-prop needs {_SPACE}")]
    found = list(_of_layers(layers[: hidden[-1] + 1], names))
    if feedback != "symmetric" or streaming:
        found += [Refusal(names[layer], layer, _LAZY) for layer in layers if any(map(is_lazy, layer.parameters()))]
    if feedback != "symmetric":
        found += _of_feedback(Chain.of(network), names)
    if feedback != "random":
        reason = 'of several hidden layers, errors reach it by random weights only: use feedback="random"'
        found += [Refusal(names[layers[place]], layers[place], reason) for place in hidden[:-1]]
    return found or (list(_of_traces(Chain.of(network), names)) if streaming else [])


def _is_readout(layers: list[nn.Module]) -> bool:
    """Return whether layers after the last neurons are stateless ones, a linear layer, and at most an integrator."""
    linear = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    if len(linear) != 1:
        return False
    before, after = layers[: linear[0]], layers[linear[0] + 1 :]
    plain = all(not _trained(layer) and not _keeps_state(layer) for layer in before)
    return plain and len(after) <= 1 and all(isinstance(layer, LeakyIntegrator) for layer in after)


def _of_layers(layers: list[nn.Module], names: dict[nn.Module, str]) -> Iterator[Refusal]:
    weighted = False
    for layer in layers:
        reason = None
        if isinstance(layer, Neuron):
            reason = None if layer.independent or RECURRENT.find(layer) else RECURRENT.unknown
        elif any(isinstance(part, Neuron) for part in layer.modules()):
            reason = f"neurons within a module of its own, but e-prop needs {_SPACE}"
        elif any(isinstance(part, _BatchNorm) for part in layer.modules()):
            reason = "its statistics are those of a batch, for which synapses have no eligibility trace: remove it"
        elif _keeps_state(layer) and (weighted or _trained(layer)):
            reason = "a state between weights and neurons, for which synapses have no eligibility trace: remove it"
        weighted = not isinstance(layer, Neuron) and (weighted or _trained(layer))
        if reason is not None:
            yield Refusal(names[layer], layer, reason)


def _of_feedback(chain: Chain, names: dict[nn.Module, str]) -> Iterator[Refusal]:
    for layer in chain.layers[chain.hidden[-1] + 1 : chain.readout]:
        if not isinstance(layer, (*_UNCHANGED, nn.Dropout)):
            yield Refusal(names[layer], layer, 'it changes spikes before the readout: use feedback="symmetric"')
    for place in chain.hidden[:-1]:
        if chain.weights_of(place) is None:
            layer = chain.layers[place]
            yield Refusal(names[layer], layer, "no nn.Linear before it, which tells the number of neurons")


def _of_traces(chain: Chain, names: dict[nn.Module, str]) -> Iterator[Refusal]:
    """Yield what has no explicit eligibility trace: trained parameters but those of linear and recurrent layers."""
    remedy = "use streaming=False"
    synapses: set[nn.Module] = {chain.readout_layer()}
    for place in chain.hidden:
        layer, weights = chain.layers[place], chain.weights_of(place)
        if weights is None:
            yield Refusal(names[layer], layer, f"no nn.Linear before it, whose synapses have traces: {remedy}")
        else:
            synapses.add(weights)
        if (reason := elementwise_refusal(layer)) is not None:
            yield Refusal(names[layer], layer, f"{reason}: {remedy}")
        recurrent = {"weight"} if RECURRENT.find(layer) else set()
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad and name not in recurrent:
                yield Refusal(names[layer], layer, f"its {name} has no eligibility trace: {remedy}")
    for layer in chain.layers[chain.hidden[-1] + 1 : chain.readout]:
        if not isinstance(layer, _UNCHANGED):
            yield Refusal(names[layer], layer, f"it changes spikes before the readout: {remedy}")
    integrator = chain.integrator
    if integrator is not None and (_trained(integrator) or isinstance(integrator.beta, Tensor)):
        yield Refusal(names[integrator], integrator, f"its decay is learned or one per channel: {remedy}")
    for layer in chain.layers:
        if layer in synapses:
            plain = type(layer).forward is nn.Linear.forward and {"weight", "bias"} <= layer._parameters.keys()
            if not plain:
                yield Refusal(names[layer], layer, f"it is not a plain nn.Linear with parameters of its own: {remedy}")
        elif not isinstance(layer, (Neuron, LeakyIntegrator)) and _trained(layer):
            yield Refusal(names[layer], layer, f"its weights have no eligibility traces: {remedy}")


def _trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _keeps_state(layer: nn.Module) -> bool:
    return any(isinstance(part, StatefulLayer) for part in layer.modules())
