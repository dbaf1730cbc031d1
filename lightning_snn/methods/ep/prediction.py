"""What a network with distributions for weights says: in closed form with one pass, or by drawing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.ep import Potential, epistemic_spike_variance
from lightning_snn.methods.ep.chain import Block, Chain
from lightning_snn.methods.ep.transforms import Signal


class OutputMoments(NamedTuple):
    """Potentials of the output, `[B, ...]`, and the part of their variance that is due to uncertain weights, of all
    layers; more data would reduce it. The rest is the noise of hidden spikes."""

    potential: Potential
    epistemic: Tensor


@torch.no_grad()
def output_moments(chain: Chain, x: Tensor) -> OutputMoments:
    """Moments of the output for inputs `[B, ...]`, by one forward pass.

    The law of total variance is followed from layer to layer: with weights of moments m and s, and inputs x of
    variance ``D = D_e + D_s``, potentials have ``V_e = s (x^2 + D_e) + m^2 D_e`` and ``V_s = (m^2 + s) D_s``.
    """
    signal, epistemic = Signal(x, None), torch.zeros_like(x)
    for block in chain.blocks:
        for stage in block.before:
            epistemic = stage.spread(signal, epistemic)
            signal = stage.forward(signal)
        potential, epistemic = _potential(block, signal, epistemic)
        if block.neuron is not None:
            epistemic = epistemic_spike_variance(potential.mean, potential.variance, epistemic, block.neuron.activation)
            signal = block.neuron.signal(potential)
    return OutputMoments(potential, epistemic)


def _potential(block: Block, signal: Signal, epistemic: Tensor) -> tuple[Potential, Tensor]:
    linear, (mean, variance) = block.layer.linear, block.layer.moments()
    potential = linear.apply(signal.mean, mean)
    weights = linear.apply(signal.mean.square(), variance)
    if signal.variance is None:
        return Potential(potential, weights, weights, potential), weights
    both = mean.square() + variance
    carried = weights + linear.apply(epistemic, both, constant=0.0)
    total = weights + linear.apply(signal.variance, both, constant=0.0)
    return Potential(potential, total, weights, potential), carried


@torch.no_grad()
def draw_output(chain: Chain, x: Tensor) -> Tensor:
    """Potentials of the output for inputs `[B, ...]` under one draw of all weights and of every hidden spike."""
    signal = Signal(x, None)
    for block in chain.blocks:
        for stage in block.before:
            signal = stage.forward(signal)
        u = block.layer.linear.apply(signal.mean, block.layer.draw())
        if block.neuron is not None:
            signal = Signal(block.neuron.draw(u), None)
    return u
