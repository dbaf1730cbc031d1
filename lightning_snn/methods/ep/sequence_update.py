r"""Expectation propagation on a batch of sequences with one recurrent layer; experimental.

With :math:`u_t = W x_t + W_\text{rec} s_{t-1} + b` and ``P(s_t) = f(u_t)`` every sample has a site at every step. All
steps share their weights, so the messages of all samples and steps are stacked into one solve, as if they were samples
of a layer with inputs ``(x_t, s_{t-1})``. Forward, the moments ``(p, p (1 - p))`` of spikes pass from step to step, and
only the score of sample n at step t is removed from its potential. Backward, the log-odds of the spikes at t are the
message of the recurrent weights at t + 1, and at the last step that of the readout.

Approximate: the steps of a sample count as independent given the weights, so the correlation that shared weights make
between them is ignored. Cost: that of `update_batch` for T times as many samples, whose forward and backward products
are T small ones in order.

The recurrence is ours; it is no part of Yao et al. 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_snn.functional.ep import (
    Message,
    Potential,
    bounded,
    epistemic_spike_variance,
    forward_moments,
    input_message,
    own_message,
)
from lightning_snn.functional.scalars import value_like
from lightning_snn.methods.ep.batch_update import LARGEST_VARIANCE, BatchUpdate, chosen, largest_distance
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.prediction import OutputMoments, block_moments
from lightning_snn.methods.ep.recurrence import SequenceChain
from lightning_snn.methods.ep.transforms import Signal
from lightning_snn.methods.ep.weight_options import per_layer
from lightning_snn.methods.ep.weights import Natural, Observation


@dataclass
class _Sweep:
    """Forward messages: inputs and potentials of every step, and of the readout."""

    moments: list[tuple[Tensor, Tensor]]  # means and variances of the weights of both blocks
    inputs: list[Signal]
    potentials: list[Potential]
    spikes: Signal  # of the last step
    output: Potential


def update_sequences(
    chain: SequenceChain,
    cavities: Sequence[Natural],
    x: Tensor,
    y: Tensor,
    iterations: int,
    damping: float,
    solver_iterations: int | Sequence[int],
    start: Sequence[Natural] | None = None,
) -> BatchUpdate:
    """Run expectation propagation on a batch of sequences; see `update_batch`.

    Proposals that are not finite, or whose potentials have a variance above 1e6, are rejected and the steps halved.

    Args:
        chain: the network.
        cavities: natural parameters of both layers without this batch.
        x: inputs `[B, T, I]`.
        y: labels `[B]` or values `[B, ...]`, observed after the last step.
        iterations: number of forward and backward sweeps, at least 1.
        damping: length of the steps, in (0, 1].
        solver_iterations: conjugate gradient iterations per step, one for both layers or one per layer.
        start: natural parameters with the contribution of this batch from an earlier update; None for a new batch.

    Raises:
        ValueError: if targets are neither integer labels nor values of the output's shape.
    """
    natural = list(cavities if start is None else start)
    counts = per_layer("solver_iterations", solver_iterations, len(chain.blocks))
    scores: list[Tensor] | None = None
    if start is not None:
        scores = [message.score for message in _messages(chain, _sweep(chain, natural, x, None), y, own=True)]
    step = value_like(damping, x)
    halved, accepted = x.new_zeros(()), torch.zeros((), dtype=torch.bool, device=x.device)
    for iteration in range(iterations):
        sweep = _sweep(chain, natural, x, scores)
        messages = _messages(chain, sweep, y, own=False)
        evidence = messages[-1].log_evidence.flatten(1).sum(1).mean()
        if iteration == 0:
            output, log_evidence = sweep.output, evidence
        stacked = _stacked(sweep.potentials)
        observations = [
            Observation(
                torch.cat([each.mean for each in sweep.inputs]),
                torch.cat([_variance(each) for each in sweep.inputs]),
                stacked,
                messages[0],
            ),
            Observation(sweep.spikes.mean, sweep.spikes.variance, sweep.output, messages[1]),
        ]
        proposals = [
            block.layer.family.step(block.layer.linear, observation, present, cavity, step, count)
            for block, observation, present, cavity, count in zip(
                chain.blocks, observations, natural, cavities, counts, strict=True
            )
        ]
        usable = torch.stack(
            [each.variance.amax() < LARGEST_VARIANCE for each in (stacked, sweep.output)]
            + [values.isfinite().all() for each in proposals for values in each]
        ).all()
        before = natural
        natural = [Natural(*chosen(usable, *pair)) for pair in zip(proposals, natural, strict=True)]
        sent = [torch.zeros_like(message.score) for message in messages] if scores is None else scores
        # as in `update_batch`: those of the output move with the weights
        new_scores = [messages[0].score, torch.lerp(sent[1], messages[1].score, step)]
        scores = chosen(usable, new_scores, sent)
        log_evidence = torch.where(evidence.isfinite(), evidence, log_evidence)
        last_step = step
        step, halved, accepted = torch.where(usable, step, step / 2), halved + ~usable, accepted | usable
    residual = torch.where(usable, largest_distance(chain, before, proposals) / last_step, torch.inf)
    noise = None
    if isinstance(chain.output, ValueOutput) and chain.output.learned:
        old = chain.output.noise_variance.detach()
        noise = torch.where(usable, chain.output.expected_noise(sweep.output, messages[1]), old)
    assert scores is not None
    return BatchUpdate(natural, output, log_evidence, noise, accepted, halved, residual, scores)


@torch.no_grad()
def sequence_moments(chain: SequenceChain, x: Tensor, every_step: bool = False) -> OutputMoments:
    """Compute the moments of the output potentials after the last step in one forward sweep; see `output_moments`.

    Args:
        chain: the network.
        x: inputs `[B, T, I]`.
        every_step: whether to return the outputs after each step, `[T*B, ...]`, the steps of the first axis outside.
    """
    recurrent, readout = chain.blocks
    assert recurrent.neuron is not None
    nothing = x.new_zeros(len(x), chain.features)
    spikes, epistemic = Signal(nothing, nothing), nothing
    found = []
    for index, current in enumerate(x.unbind(1)):
        known = torch.zeros_like(current)
        potential, epistemic = block_moments(recurrent, _joined(current, spikes), torch.cat([known, epistemic], 1))
        epistemic = epistemic_spike_variance(potential.mean, potential.variance, epistemic, recurrent.neuron.activation)
        spikes = recurrent.neuron.signal(potential)
        if every_step or index == x.shape[1] - 1:
            found.append(block_moments(readout, spikes, epistemic))
    return OutputMoments(_stacked([each for each, _ in found]), torch.cat([each for _, each in found]))


@torch.no_grad()
def draw_sequence_output(chain: SequenceChain, x: Tensor, every_step: bool = False) -> Tensor:
    """Sample the output potentials with one draw of all weights and of every spike; arguments as `sequence_moments`."""
    recurrent, readout = chain.blocks
    assert recurrent.neuron is not None
    weights, readout_weights = recurrent.layer.draw(), readout.layer.draw()
    spikes = x.new_zeros(len(x), chain.features)
    found = []
    for current in x.unbind(1):
        u = recurrent.layer.linear.apply(torch.cat([current, spikes], 1), weights)
        spikes = recurrent.neuron.draw(u)
        found.append(readout.layer.linear.apply(spikes, readout_weights))
    return torch.cat(found) if every_step else found[-1]


def _sweep(chain: SequenceChain, natural: Sequence[Natural], x: Tensor, scores: Sequence[Tensor] | None) -> _Sweep:
    recurrent, readout = chain.blocks
    assert recurrent.neuron is not None
    moments = [block.layer.family.moments(each) for block, each in zip(chain.blocks, natural, strict=True)]
    nothing = x.new_zeros(len(x), chain.features)
    spikes = Signal(nothing, nothing)
    inputs, potentials = [], []
    own = [None] * x.shape[1] if scores is None else list(scores[0].view(x.shape[1], len(x), -1))
    for current, score in zip(x.unbind(1), own, strict=True):
        here = _joined(current, spikes)
        potential = forward_moments(recurrent.layer.linear, here.mean, here.variance, *moments[0], score)
        spikes = recurrent.neuron.signal(potential)
        inputs.append(here)
        potentials.append(potential)
    score = None if scores is None else scores[1]
    output = forward_moments(readout.layer.linear, spikes.mean, spikes.variance, *moments[1], score)
    return _Sweep(moments, inputs, potentials, spikes, output)


def _messages(chain: SequenceChain, sweep: _Sweep, y: Tensor, own: bool) -> list[Message]:
    """Return the messages to the potentials of all steps `[T*B, N]` and to those of the output."""
    recurrent, readout = chain.blocks
    assert recurrent.neuron is not None

    def message(factor: MessageNeuron | SpikeOutput | ValueOutput, potential: Potential, target: Tensor) -> Message:
        if own:
            sent = own_message(potential, lambda cavity: factor.message(cavity, target))
        else:
            sent = factor.message(potential, target)
        return bounded(sent, potential.variance)

    last = message(chain.output, sweep.output, y)
    p = sweep.spikes.mean
    score, curvature = input_message(readout.layer.linear, p, *sweep.moments[1], last)
    steps = []
    for here, potential in zip(reversed(sweep.inputs), reversed(sweep.potentials), strict=True):
        sent = message(recurrent.neuron, potential, score + (p - 0.5) * curvature)
        steps.append(sent)
        p = here.mean[:, -chain.features :]
        score, curvature = (
            each[:, -chain.features :]
            for each in input_message(recurrent.layer.linear, here.mean, *sweep.moments[0], sent)
        )
    # of spikes, so without the noise of values
    return [Message(*(torch.cat(parts) for parts in zip(*(each[:3] for each in reversed(steps)), strict=True))), last]


def _joined(x: Tensor, spikes: Signal) -> Signal:
    """Return the inputs `[B, I + N]` of a step: known inputs, and the spikes of the step before."""
    return Signal(torch.cat([x, spikes.mean], 1), torch.cat([torch.zeros_like(x), _variance(spikes)], 1))


def _variance(signal: Signal) -> Tensor:
    assert signal.variance is not None
    return signal.variance


def _stacked(potentials: Sequence[Potential]) -> Potential:
    mean, variance, weight_variance, uncorrected = zip(*potentials, strict=True)
    known = [each for each in uncorrected if each is not None]
    return Potential(
        torch.cat(mean), torch.cat(variance), torch.cat(weight_variance), torch.cat(known) if known else None
    )
