"""Outputs of a network with weight distributions: moments in closed form, or samples."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.ep import Potential, epistemic_spike_variance
from lightning_snn.methods.ep.chain import Block, Chain
from lightning_snn.methods.ep.transforms import Signal
from lightning_snn.methods.tasks import Prediction


class OutputMoments(NamedTuple):
    """Moments of the output potentials, `[B, ...]`.

    Attributes:
        potential: means and variances.
        epistemic: the part of the variance that is due to uncertain weights of all layers. More data would reduce it.
            The rest is the noise of hidden spikes.
    """

    potential: Potential
    epistemic: Tensor


@torch.no_grad()
def output_moments(chain: Chain, x: Tensor) -> OutputMoments:
    """Compute the moments of the output potentials in one forward pass.

    The law of total variance is applied layer by layer: with weights of mean m and variance s, and inputs x of
    variance ``D = D_e + D_s``, potentials have ``V_e = s (x^2 + D_e) + m^2 D_e`` and ``V_s = (m^2 + s) D_s``.

    Args:
        chain: the network.
        x: inputs `[B, ...]`.

    Example:
        >>> from torch import nn
        >>> from lightning_snn.methods.ep import ExpectationPropagation
        >>> network = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(8, 3)))
        >>> potential, epistemic = output_moments(network.chain, torch.rand(2, 8))
        >>> torch.equal(potential.variance, epistemic)
        True
    """
    signal, epistemic = Signal(x, None), torch.zeros_like(x)
    for block in chain.blocks:
        for transform in block.before:
            epistemic = transform.propagate_variance(signal, epistemic)
            signal = transform.forward(signal)
        potential, epistemic = block_moments(block, signal, epistemic)
        if block.neuron is not None:
            epistemic = epistemic_spike_variance(potential.mean, potential.variance, epistemic, block.neuron.activation)
            signal = block.neuron.signal(potential)
    return OutputMoments(potential, epistemic)


def block_moments(block: Block, signal: Signal, epistemic: Tensor) -> tuple[Potential, Tensor]:
    """Return the potentials of a block for its inputs, and the epistemic part of their variance.

    Args:
        block: weights, behind fixed layers that are not applied here.
        signal: moments of the inputs of the weights.
        epistemic: part of the inputs' variance that is due to uncertain weights.
    """
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
    """Sample the output potentials with one draw of all weights and of every hidden spike.

    Args:
        chain: the network.
        x: inputs `[B, ...]`.

    Returns:
        Potentials `[B, ...]`; draws are from torch's generator.

    Example:
        >>> from torch import nn
        >>> from lightning_snn.methods.ep import ExpectationPropagation
        >>> network = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(8, 3)))
        >>> draw_output(network.chain, torch.rand(2, 8)).shape
        torch.Size([2, 3])
    """
    signal = Signal(x, None)
    for block in chain.blocks:
        for transform in block.before:
            signal = transform.forward(signal)
        u = block.layer.linear.apply(signal.mean, block.layer.draw())
        if block.neuron is not None:
            signal = Signal(block.neuron.draw(u), None)
    return u


def unfolded(flat: Prediction, x: Tensor) -> Prediction:
    """Return the predictions `[T*B, ...]` of inputs `[T, B, ...]` as `[T, B, ...]`."""

    def unfold(values: Tensor) -> Tensor:
        return values.view(x.shape[:2] + values.shape[1:])

    return replace(
        flat,
        mean=unfold(flat.mean),
        variance=None if flat.variance is None else unfold(flat.variance),
        samples=None if flat.samples is None else flat.samples.unflatten(1, x.shape[:2]),
        spike_probabilities=None if flat.spike_probabilities is None else unfold(flat.spike_probabilities),
        variance_parts=None
        if flat.variance_parts is None
        else {name: unfold(part) for name, part in flat.variance_parts.items()},
    )
