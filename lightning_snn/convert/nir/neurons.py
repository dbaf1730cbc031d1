"""Neurons as nodes of NIR: LIF, IF, CubaLIF, LI, and the subgraph of a recurrent layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from lightning_snn.convert.nir.constants import full, next_float, time_constant
from lightning_snn.convert.nir.metadata import notes_of
from lightning_snn.convert.nir.package import KEY, import_nir
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.nn.layer_rules import LayerRules
from lightning_snn.nn.neurons import LIF, LeakyIntegrator, Neuron, Recurrent, RecurrentLIF, SynapticLIF
from lightning_snn.nn.stateful import StatefulLayer


class Target(NamedTuple):
    """Simulation that a graph is written for.

    Attributes:
        dt: step in seconds.
        dtype: floating point type of the arrays.
        strict: whether simulators spike at ``v > v_threshold``, and not at ``v >= v_threshold``.
    """

    dt: float
    dtype: np.dtype
    strict: bool = True


def lif_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of `LIF` neurons: LIF, or IF if nothing leaks."""
    assert isinstance(layer, LIF)
    nir = import_nir()
    beta = full(layer, "beta", shape, target.dtype)
    fields = _firing(layer, shape, target, layer.dynamics)
    if (beta == 1).all():
        return nir.IF(r=np.full(shape, 1 / target.dt, target.dtype), **fields)
    tau = time_constant(_leaking(beta, "decay"), target.dt)
    return nir.LIF(tau=tau, r=_unit_gain(tau, target), v_leak=np.zeros_like(tau), **fields)


def synaptic_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of `SynapticLIF` neurons: CubaLIF."""
    assert isinstance(layer, SynapticLIF)
    nir = import_nir()
    tau_syn, tau_mem = (
        time_constant(_leaking(full(layer, name, shape, target.dtype), meaning), target.dt)
        for name, meaning in (("alpha", "decay of the synaptic current"), ("beta", "decay of the membrane potential"))
    )
    return nir.CubaLIF(
        tau_syn=tau_syn,
        tau_mem=tau_mem,
        r=_unit_gain(tau_mem, target),
        v_leak=np.zeros_like(tau_mem),
        w_in=_unit_gain(tau_syn, target),
        **_firing(layer, shape, target, layer.dynamics),
    )


def integrator_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of a `LeakyIntegrator`: LI, or I if nothing leaks."""
    assert isinstance(layer, LeakyIntegrator)
    nir = import_nir()
    beta, metadata = full(layer, "beta", shape, target.dtype), notes_of(layer, None)
    if (beta == 1).all():
        return nir.I(r=np.full(shape, 1 / target.dt, target.dtype), metadata=metadata)
    tau = time_constant(_leaking(beta, "decay"), target.dt)
    return nir.LI(tau=tau, r=_unit_gain(tau, target), v_leak=np.zeros_like(tau), metadata=metadata)


def recurrent_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the subgraph of neurons that receive the spikes of their own layer through a Linear node."""
    assert isinstance(layer, (Recurrent, RecurrentLIF))
    nir = import_nir()
    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    rule = lif_node if isinstance(layer, RecurrentLIF) else NEURON_RULES.find(neuron)
    if rule is None or rule is recurrent_node:
        raise Unconvertible(f"NIR has no node for its {type(neuron).__name__}")
    weight = layer.weight.detach().cpu().numpy().astype(target.dtype)
    return nir.NIRGraph(
        nodes={
            "input": nir.Input(input_type=np.array(shape)),
            "lif": rule(neuron, shape, target),
            "w_rec": nir.Linear(weight=weight, metadata={KEY: {"wrapped": isinstance(layer, Recurrent)}}),
            "output": nir.Output(output_type=np.array(shape)),
        },
        edges=[("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
        type_check=False,
    )


NEURON_RULES: LayerRules[Any] = LayerRules(
    unknown="NIR has no node for its equations, but for LIF, IF, SynapticLIF and LeakyIntegrator"
)
for _kind, _rule in (
    (LIF, lif_node),
    (SynapticLIF, synaptic_node),
    (LeakyIntegrator, integrator_node),
    (Recurrent, recurrent_node),
    (RecurrentLIF, recurrent_node),
):
    NEURON_RULES.register(_kind, _rule)


def subtracts(layer: nn.Module) -> bool:
    """Return whether the reset of neurons subtracts the threshold, for which NIR has no field."""
    inner = layer.neuron if isinstance(layer, Recurrent) else layer
    dynamics = getattr(inner, "dynamics", None)
    return isinstance(inner, Neuron) and isinstance(dynamics, Dynamics) and dynamics.reset == "subtract"


def _firing(layer: StatefulLayer, shape: Sequence[int], target: Target, dynamics: Dynamics) -> dict[str, Any]:
    threshold = full(layer, "threshold", shape, target.dtype)
    return {
        "v_threshold": threshold if target.strict else next_float(threshold, np.inf),
        "v_reset": np.zeros_like(threshold),
        "metadata": notes_of(layer, dynamics, not target.strict),
    }


def _leaking(decay: np.ndarray, meaning: str) -> np.ndarray:
    if (decay >= 1).any():
        raise Unconvertible(
            f"a {meaning} of 1, at least in some channels, is an infinite time constant, and only LIF with decay 1 "
            "everywhere is another node, IF: use a decay slightly below 1"
        )
    return decay


def _unit_gain(tau: np.ndarray, target: Target) -> np.ndarray:
    """Return the resistance that gives the input the weight 1."""
    gain: np.ndarray = tau / target.dt
    return gain
