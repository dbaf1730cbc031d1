"""Tables of the methods and layers under test: a new one adds a row, and every contract is tested on it.

A promise is a test of this folder that takes a `row`; what a row does not keep is listed in `exceptions.py`.
`python -m tests.contract.matrix` prints which row keeps which promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from torch import nn

from lightning_snn.convert import SnntorchLIF
from lightning_snn.functional import Smooth
from lightning_snn.methods import (
    EProp,
    ExpectationPropagation,
    Method,
    NoisySpikes,
    OnlineThroughTime,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.methods.bayes import BayesRecurrentLIF
from lightning_snn.nn import (
    IF,
    LIF,
    AdaptiveLIF,
    DivisiveNormalization,
    LeakyIntegrator,
    Neuron,
    Recurrent,
    RecurrentLIF,
    SynapticDelays,
    SynapticLIF,
)
from tests.contract.exceptions import reason
from tests.support.event_order import (
    CHANNELS,
    CLASSES,
    binary_network,
    delayed_network,
    recurrent_network,
    small_network,
)


@dataclass(frozen=True)
class MethodRow:
    """A method as it is put to the test.

    Attributes:
        name: what the tests call it.
        make: builds the method.
        network: builds the network that it trains on the order of two events.
        learning_rate: with which it learns the task.
        epochs: in which it learns the task, 4 batches each.
        slow: whether its tests are marked as slow.
    """

    name: str
    make: Callable[[], Method]
    network: Callable[[], nn.Module] = small_network
    learning_rate: float = 3e-2
    epochs: int = 20
    slow: bool = False


@dataclass(frozen=True)
class LayerRow:
    """A layer with a state, as it is put to the test on inputs `[T*B, 4]`.

    Attributes:
        name: what the tests call it.
        make: builds the layer.
        refused_by: for a neuron, the methods of `tests.contract.test_neurons` that refuse it by name, and a pattern of
            the reason; every other method trains it.
        without_gradient: for a neuron, the parameters that get no gradient from a method that trains it, by method.
    """

    name: str
    make: Callable[[], nn.Module]
    refused_by: Mapping[str, str] = field(default_factory=dict)
    without_gradient: Mapping[str, str] = field(default_factory=dict)


METHODS = (
    MethodRow("surrogate_gradient", SurrogateGradient),
    MethodRow("spiking_bayes_posterior_mean", SpikingBayes),
    MethodRow("spiking_bayes_samples", lambda: SpikingBayes(samples=4)),
    MethodRow("spiking_bayes_weights", lambda: SpikingBayes(samples=4, sampling="weights")),
    MethodRow("spiking_bayes_step", lambda: SpikingBayes(noise_mode="step")),
    MethodRow("spiking_bayes_trace", lambda: SpikingBayes(noise_mode="trace")),
    MethodRow("spiking_bayes_agr", lambda: SpikingBayes(estimator="agr")),
    MethodRow("spiking_bayes_recurrent", SpikingBayes, recurrent_network),
    MethodRow("spiking_bayes_binary", lambda: SpikingBayes(lam="auto"), binary_network),
    MethodRow("noisy_spikes", NoisySpikes),
    MethodRow("time_to_first_spike", lambda: TimeToFirstSpike(input_range=(0.0, 1.1))),
    MethodRow("expectation_propagation", ExpectationPropagation, learning_rate=1.0, epochs=2),
    MethodRow(
        "expectation_propagation_average",
        lambda: ExpectationPropagation(memory="average", activation="heaviside"),
        learning_rate=1.0,
        epochs=2,
    ),
    MethodRow(
        "expectation_propagation_signs",
        lambda: ExpectationPropagation(weights=["sign", "gaussian"], memory="adf"),
        learning_rate=1.0,
        epochs=2,
    ),
    MethodRow(
        "expectation_propagation_winner",
        lambda: ExpectationPropagation(output_activation="winner"),
        learning_rate=1.0,
        epochs=2,
    ),
    # means over time do not depend on the order of two events: neurons receive it by delays, or by recurrence
    MethodRow("rate_backprop", RateBackprop, delayed_network),
    MethodRow("rate_backprop_windows", lambda: RateBackprop(window=4), delayed_network),
    MethodRow("rate_backprop_linked", lambda: RateBackprop(window=4, link=True), delayed_network),
    MethodRow("rate_backprop_streaming", lambda: RateBackprop(streaming=True), delayed_network),
    MethodRow("rate_backprop_step", lambda: RateBackprop(window="step"), recurrent_network),
    MethodRow("online_through_time", OnlineThroughTime),
    MethodRow("online_through_time_streaming", lambda: OnlineThroughTime(streaming=True)),
    MethodRow("online_through_time_space", lambda: OnlineThroughTime(trace=False), delayed_network),
    MethodRow("eprop", EProp, recurrent_network),
    MethodRow("eprop_adaptive", lambda: EProp("adaptive"), recurrent_network),
    MethodRow("eprop_streaming", lambda: EProp("random", streaming=True), recurrent_network),
)

LEARNED = {"learn_beta": True, "learn_threshold": True, "channels": 4}


def recurrent_means() -> BayesRecurrentLIF:
    """Outside `posterior_noise` the widths play no part."""
    layer = BayesRecurrentLIF(4, 0.8, **LEARNED)
    layer.weight_log_std.requires_grad_(False)
    return layer


STEP_ONLY = {"spiking_bayes": 'fires by noise in mode "step" only: noise_mode="step"'}
BY_EQUATIONS = {**STEP_ONLY, "time_to_first_spike": "no first spike time in closed form"}
RECURRENT = {
    "rate_backprop": 'neurons that receive each other\'s spikes, which only window="step" can represent',
    "time_to_first_spike": ".+",
    "expectation_propagation": ".+",
}
LEARNED_ADAPTATION = {"learn_rho": True, "learn_strength": True}

LAYERS = (
    LayerRow("if", IF),
    LayerRow("if_learned", lambda: IF(learn_threshold=True, channels=4)),
    LayerRow("lif", lambda: LIF(0.8)),
    LayerRow("lif_reset_to_zero", lambda: LIF(0.8, reset="zero")),
    LayerRow("lif_leak_then_reset", lambda: LIF(0.8, order="leak_then_reset"), refused_by=STEP_ONLY),
    LayerRow("lif_smooth", lambda: LIF(0.8, surrogate=Smooth())),
    LayerRow("lif_channels", lambda: LIF([0.5, 0.6, 0.7, 0.8], [0.8, 0.9, 1.0, 1.1])),
    LayerRow("lif_learned", lambda: LIF(0.8, **LEARNED)),
    LayerRow("adaptive_lif", lambda: AdaptiveLIF(0.8, rho=0.9), refused_by=BY_EQUATIONS),
    LayerRow(
        "adaptive_lif_learned",
        lambda: AdaptiveLIF(0.8, rho=0.9, reset="zero", **LEARNED, **LEARNED_ADAPTATION),
        refused_by=BY_EQUATIONS,
        without_gradient={"rate_backprop_step": "1.rho_logit"},
    ),
    LayerRow("synaptic_lif", lambda: SynapticLIF(0.5, 0.8), refused_by=BY_EQUATIONS),
    LayerRow(
        "synaptic_lif_leak_then_reset",
        lambda: SynapticLIF([0.4, 0.5, 0.6, 0.7], 0.8, order="leak_then_reset"),
        refused_by=BY_EQUATIONS,
    ),
    LayerRow(
        "synaptic_lif_learned",
        lambda: SynapticLIF(0.5, 0.8, reset="zero", **LEARNED, learn_alpha=True),
        refused_by=BY_EQUATIONS,
    ),
    LayerRow("recurrent_lif", lambda: RecurrentLIF(4, 0.8), refused_by=RECURRENT),
    LayerRow("recurrent_lif_learned", lambda: RecurrentLIF(4, 0.8, reset="zero", **LEARNED), refused_by=RECURRENT),
    LayerRow(
        "recurrent_around_lif",
        lambda: Recurrent(LIF(0.8), 4),
        refused_by={**RECURRENT, **STEP_ONLY},
    ),
    LayerRow(
        "recurrent_around_learned_lif",
        lambda: Recurrent(LIF(0.8, order="leak_then_reset", **LEARNED), 4),
        refused_by={**RECURRENT, **STEP_ONLY},
    ),
    LayerRow(
        "recurrent_around_adaptive_lif",
        lambda: Recurrent(AdaptiveLIF(0.8, rho=0.9), 4),
        refused_by={**RECURRENT, **STEP_ONLY},
    ),
    LayerRow(
        "recurrent_around_learned_adaptive_lif",
        lambda: Recurrent(AdaptiveLIF(0.8, rho=0.9, **LEARNED, **LEARNED_ADAPTATION), 4),
        refused_by={**RECURRENT, **STEP_ONLY},
        without_gradient={"rate_backprop_step": "1.neuron.rho_logit"},
    ),
    LayerRow(
        "snntorch_lif_learned",
        lambda: SnntorchLIF(
            [0.8] * 4, [0.9] * 4, 0.5, reset_delay=False, learn_beta=True, learn_threshold=True, learn_alpha=True
        ),
        refused_by=BY_EQUATIONS,
    ),
    LayerRow(
        "bayes_recurrent_lif",
        recurrent_means,
        refused_by={**RECURRENT, "rate_backprop_step": "parameter weight is neither a number nor one per channel"},
    ),
    LayerRow("leaky_integrator", lambda: LeakyIntegrator(0.8)),
    LayerRow("leaky_integrator_learned", lambda: LeakyIntegrator(0.8, learn_beta=True, channels=4)),
    LayerRow("synaptic_delays", lambda: SynapticDelays((0, 1, 3))),
    LayerRow("divisive_normalization", lambda: DivisiveNormalization(0.5)),
)


def neuron_network(layer: Callable[[], nn.Module]) -> nn.Module:
    """A network of 4 hidden neurons that spike now and then."""
    made = nn.Sequential(nn.Linear(CHANNELS, 4), layer(), nn.Linear(4, CLASSES))
    nn.init.normal_(made[0].weight, std=0.7)
    nn.init.constant_(made[0].bias, 0.3)
    return made


def _of_neuron(row: LayerRow) -> MethodRow:
    return MethodRow(row.name, SurrogateGradient, lambda: neuron_network(row.make))


# all methods, and all neurons with surrogate gradients, under every feature of the Trainer; in the test command a row
# of each method and one neuron
_IN_TEST_COMMAND = (
    "surrogate_gradient",
    "spiking_bayes_samples",
    "noisy_spikes",
    "time_to_first_spike",
    "expectation_propagation",
    "rate_backprop_windows",
    "online_through_time",
    "eprop",
    "recurrent_around_learned_adaptive_lif",
)
RUNS = tuple(
    replace(row, slow=row.name not in _IN_TEST_COMMAND)
    for row in (*METHODS, *(_of_neuron(row) for row in LAYERS if isinstance(row.make(), Neuron)))
)
METHOD_RUNS = tuple(row for row in RUNS if any(row.name == each.name for each in METHODS))
# runs a test for all methods, in the test command for a row of each
every_method = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in METHOD_RUNS]
)

TABLES = {"MethodRow": "Methods and neurons", "LayerRow": "Layers", "CallbackRow": "Callbacks"}


def for_promise(table: Sequence[Any], promise: str) -> list:
    """The rows of a table as parameters of the test of a promise."""
    return [
        pytest.param(
            row,
            id=row.name,
            marks=[
                *([pytest.mark.xfail(reason=why, strict=True)] if (why := reason(promise, row.name)) else []),
                *([pytest.mark.slow] if getattr(row, "slow", False) else []),
            ],
        )
        for row in table
    ]


def name_of(row: Any) -> str:
    """The name of the table of a row in the matrix."""
    return TABLES[type(row).__name__]
