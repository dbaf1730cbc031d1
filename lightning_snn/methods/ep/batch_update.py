"""Expectation propagation on one batch: iterations of messages forward and backward through the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_snn.functional.ep import (
    Message,
    Potential,
    bounded,
    forward_moments,
    input_message,
    own_message,
    without_own,
)
from lightning_snn.functional.linear_maps import KnownInputs, LinearMap
from lightning_snn.functional.scalars import value_like
from lightning_snn.functional.spike_inputs import known_inputs
from lightning_snn.methods.ep.chain import Chain
from lightning_snn.methods.ep.neurons import ValueOutput
from lightning_snn.methods.ep.transforms import Feedback, Signal
from lightning_snn.methods.ep.weight_options import per_layer
from lightning_snn.methods.ep.weights import Natural, Observation

# variance of potentials from which an iteration counts as diverging
LARGEST_VARIANCE = 1e6
# share by which the log-evidence may decrease from one iteration to the next before steps are halved
_TOLERATED_DECREASE = 0.1


_Factor = Callable[[Potential, Tensor], Message]
_MessageOf = Callable[[_Factor, Potential, Tensor], Message]


@dataclass(frozen=True)
class BatchUpdate:
    """Result of one EP update on a batch.

    Attributes:
        natural: natural parameters of each layer, cavity and batch together.
        output: output potentials before the update.
        log_evidence: log-probability of the targets in the last finite iteration, the mean over samples; a scalar.
        noise_variance: noise variance of the observations that fits the batch; None unless it is learned.
        accepted: whether any iteration was usable; if not, `natural` are the parameters of the cavity; a bool scalar.
        halved: number of times that steps were halved; a scalar.
        residual: how far the last iteration would have moved the means of the weights without damping, in standard
            deviations: the root mean square of a layer, the largest of all layers. It decreases to 0 as the messages
            converge; infinite if the last iteration was not usable. A scalar.
        scores: score that each sample has sent to the weights of each layer, `[B, O, ...]`.

    Example:
        >>> from torch import nn
        >>> from lightning_snn.methods.ep import ExpectationPropagation
        >>> chain = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(4, 3))).chain
        >>> cavities = [block.layer.natural for block in chain.blocks]
        >>> update = update_batch(chain, cavities, torch.rand(6, 4), torch.arange(6) % 3, 2, 0.5, 3)
        >>> update.accepted, update.output.mean.shape
        (tensor(True), torch.Size([6, 3]))
    """

    natural: list[Natural]
    output: Potential
    log_evidence: Tensor
    noise_variance: Tensor | None
    accepted: Tensor
    halved: Tensor
    residual: Tensor
    scores: list[Tensor]


@dataclass
class _Forward:
    """Forward messages of a block."""

    linear: LinearMap
    before: list[Signal]  # in front of each fixed layer; none in the first block
    inputs: Signal
    mean: Tensor
    variance: Tensor
    potential: Potential


def update_batch(
    chain: Chain,
    cavities: Sequence[Natural],
    x: Tensor,
    y: Tensor,
    iterations: int,
    damping: float,
    solver_iterations: int | Sequence[int],
    start: Sequence[Natural] | None = None,
    scores: Sequence[Tensor] | None = None,
) -> BatchUpdate:
    """Run expectation propagation on one batch, with the posterior of the other batches as prior.

    The state of the iterations are the weights and the score that each sample has sent to them, whose contribution is
    subtracted from the potentials of that sample. Those of the output move by the same damped step as the weights:
    otherwise more would be subtracted than the weights contain, the log-evidence would fall, and steps be halved for
    nothing. Those of hidden neurons follow the messages from above at once.

    Proposals that are not finite, or whose potentials have a variance above 1e6, are rejected and the steps halved.
    Steps are also halved if the log-evidence decreases by more than a tenth.

    Args:
        chain: the network.
        cavities: natural parameters of each layer without this batch.
        x: inputs `[B, ...]`.
        y: labels `[B]` or values `[B, ...]`.
        iterations: number of forward and backward passes, at least 1.
        damping: length of the steps, in (0, 1].
        solver_iterations: conjugate gradient iterations per step, one for all layers or one per layer.
        start: natural parameters of each layer with the contribution of this batch from an earlier update, where the
            iterations continue; None for a new batch, whose iterations start at the cavities.
        scores: those of the earlier update, if they are known; None finds the scores that belong to `start`.

    Raises:
        ValueError: if targets are neither integer labels nor values of the output's shape.

    Example:
        >>> from torch import nn
        >>> from lightning_snn.methods.ep import ExpectationPropagation
        >>> chain = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(4, 3))).chain
        >>> cavities = [block.layer.natural for block in chain.blocks]
        >>> x, y = torch.rand(6, 4), torch.arange(6) % 3
        >>> update = update_batch(chain, cavities, x, y, iterations=2, damping=0.5, solver_iterations=3)
        >>> bool((update.natural[0].precision >= cavities[0].precision).all())
        True
        >>> more = update_batch(chain, cavities, x, y, 2, 0.5, 3, start=update.natural)
        >>> bool(more.residual < update.residual)
        True
    """
    natural = list(cavities if start is None else start)
    counts = per_layer("solver_iterations", solver_iterations, len(chain.blocks))
    inputs = _inputs(chain, x)
    first = None
    if start is not None and scores is None:
        first, *others = _forward(chain, natural, inputs)
        scores = [message.score for message in _messages(chain, [first, *others], y, _bounded_own_message)]
    step = value_like(damping, x)
    halved, accepted = x.new_zeros(()), torch.zeros((), dtype=torch.bool, device=x.device)
    last_evidence: Tensor | None = None
    for iteration in range(iterations):
        forward = _forward(chain, natural, inputs, scores, None if iteration else first)
        potential = forward[-1].potential
        messages = _messages(chain, forward, y, _bounded_message)
        evidence = messages[-1].log_evidence.flatten(1).sum(1).mean()
        if iteration == 0:
            output, log_evidence = potential, evidence
        # from the second iteration on, the message of a sample to the weights is excluded from its own evidence
        if last_evidence is not None:
            decreased = evidence < last_evidence - _TOLERATED_DECREASE * last_evidence.abs()
            step, halved = torch.where(decreased, step / 2, step), halved + decreased
        last_evidence = evidence if iteration else None
        usable = torch.stack([(each.potential.variance.amax() < LARGEST_VARIANCE) for each in forward]).all()
        proposals = [
            block.layer.family.step(
                here.linear,
                Observation(
                    here.inputs.mean, here.inputs.variance, here.potential, message, (here.mean, here.variance)
                ),
                present,
                cavity,
                step,
                count,
            )
            for block, here, message, present, cavity, count in zip(
                chain.blocks, forward, messages, natural, cavities, counts, strict=True
            )
        ]
        # a sum is finite if all its terms are
        usable &= torch.stack([values.sum() for each in proposals for values in each]).sum().isfinite()
        before = natural
        natural = [Natural(*chosen(usable, *pair)) for pair in zip(proposals, natural, strict=True)]
        sent = [torch.zeros_like(message.score) for message in messages] if scores is None else scores
        # of hidden neurons undamped: behind the messages from above, long steps would oscillate sooner
        new_scores = [message.score for message in messages]
        new_scores[-1] = torch.lerp(sent[-1], new_scores[-1], step)
        scores = chosen(usable, new_scores, sent)
        log_evidence = torch.where(evidence.isfinite(), evidence, log_evidence)
        last_step = step
        step, halved, accepted = torch.where(usable, step, step / 2), halved + ~usable, accepted | usable
    residual = torch.where(usable, largest_distance(chain, before, proposals) / last_step, torch.inf)
    noise = None
    if isinstance(chain.output, ValueOutput) and chain.output.learned:
        old = chain.output.noise_variance.detach()
        noise = torch.where(usable, chain.output.expected_noise(potential, messages[-1]), old)
    assert scores is not None
    return BatchUpdate(natural, output, log_evidence, noise, accepted, halved, residual, list(scores))


def _inputs(chain: Chain, x: Tensor) -> KnownInputs:
    """Return the inputs of the first weights, which are the same in all iterations."""
    first = chain.blocks[0]
    signal = Signal(x, None)
    for transform in first.before:
        signal = transform.forward(signal)
    return known_inputs(first.layer.linear, signal.mean, len(first.layer.precision))


def chosen(usable: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """Return the new tensors if they are usable; a device must not wait for the answer."""
    if usable.device.type == "cpu":
        return list(new if usable else old)
    return [torch.where(usable, *pair) for pair in zip(new, old, strict=True)]


def _forward(
    chain: Chain,
    natural: Sequence[Natural],
    inputs: KnownInputs,
    scores: Sequence[Tensor] | None = None,
    first: _Forward | None = None,
) -> list[_Forward]:
    """Return the forward messages of each block; `first` are those of the first block without scores, if known."""
    signal = Signal(inputs.x, None)
    forward = []
    for index, (block, parameters) in enumerate(zip(chain.blocks, natural, strict=True)):
        score = None if scores is None else scores[index]
        if index == 0 and first is not None and score is not None:
            here = replace(first, potential=without_own(first.potential, score))
        else:
            before = []
            for transform in block.before if index else ():
                before.append(signal)
                signal = transform.forward(signal)
            linear = block.layer.linear if index else inputs
            mean, variance = block.layer.family.moments(parameters)
            potential = forward_moments(linear, signal.mean, signal.variance, mean, variance, score)
            here = _Forward(linear, before, signal, mean, variance, potential)
        forward.append(here)
        if block.neuron is not None:
            signal = block.neuron.signal(here.potential)
    return forward


def _messages(chain: Chain, forward: Sequence[_Forward], y: Tensor, message_of: _MessageOf) -> list[Message]:
    """Return the messages to the potentials of each block, from the output backward."""
    messages = [message_of(chain.output.message, forward[-1].potential, y)]
    for index in reversed(range(1, len(forward))):
        block, here, below = chain.blocks[index], forward[index], forward[index - 1]
        feedback = Feedback(
            *input_message(block.layer.linear, here.inputs.mean, here.mean, here.variance, messages[-1])
        )
        for transform, signal in zip(reversed(block.before), reversed(here.before), strict=True):
            feedback = transform.backward(signal, feedback)
        p = here.before[0].mean if here.before else here.inputs.mean
        log_odds = feedback.score + (p - 0.5) * feedback.curvature
        neuron = chain.blocks[index - 1].neuron
        assert neuron is not None
        messages.append(message_of(neuron.message, below.potential, log_odds))
    return messages[::-1]


def _bounded_message(factor: _Factor, potential: Potential, target: Tensor) -> Message:
    return bounded(factor(potential, target), potential.variance)


def _bounded_own_message(factor: _Factor, potential: Potential, target: Tensor) -> Message:
    return bounded(own_message(potential, lambda cavity: factor(cavity, target)), potential.variance)


def largest_distance(chain: Chain, before: Sequence[Natural], after: Sequence[Natural]) -> Tensor:
    """Return the root mean square distance of a layer, in standard deviations, the largest of all."""
    distances = [
        block.layer.family.squared_distance(*pair).mean()
        for block, *pair in zip(chain.blocks, before, after, strict=True)
    ]
    return torch.stack(distances).amax().sqrt()
