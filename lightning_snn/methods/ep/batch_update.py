"""Expectation propagation on one batch: iterations of messages forward and backward through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_snn.functional.ep import Message, Potential, bounded, forward_moments, input_message
from lightning_snn.methods.ep.chain import Chain
from lightning_snn.methods.ep.neurons import ValueOutput
from lightning_snn.methods.ep.transforms import Feedback, Signal
from lightning_snn.methods.ep.weights import Natural, Observation

# variance of potentials from which an iteration counts as diverging
_LARGEST_VARIANCE = 1e6
# share by which the log-evidence may decrease from one iteration to the next before steps are halved
_TOLERATED_DECREASE = 0.1


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


@dataclass
class _Forward:
    """Forward messages of a block."""

    before: list[Signal]  # in front of each fixed layer
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
    solver_iterations: int,
) -> BatchUpdate:
    """Run expectation propagation on one batch, with the posterior of the other batches as prior.

    Proposals that are not finite, or whose potentials have a variance above 1e6, are rejected and the steps halved.
    Steps are also halved if the log-evidence decreases by more than a tenth.

    Args:
        chain: the network.
        cavities: natural parameters of each layer without this batch.
        x: inputs `[B, ...]`.
        y: labels `[B]` or values `[B, ...]`.
        iterations: number of forward and backward passes, at least 1.
        damping: length of the steps, in (0, 1].
        solver_iterations: conjugate gradient iterations per step.

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
    """
    natural = list(cavities)
    scores: list[Tensor | None] = [None] * len(chain.blocks)
    step = x.new_tensor(damping)
    halved, accepted = x.new_zeros(()), torch.zeros((), dtype=torch.bool, device=x.device)
    last_evidence: Tensor | None = None
    for iteration in range(iterations):
        forward = _forward(chain, natural, x, scores)
        potential = forward[-1].potential
        message = bounded(chain.output.message(potential, y), potential.variance)
        evidence = message.log_evidence.flatten(1).sum(1).mean()
        if iteration == 0:
            output, log_evidence = potential, evidence
        # from the second iteration on, the message of a sample to the weights is excluded from its own evidence
        if last_evidence is not None:
            decreased = evidence < last_evidence - _TOLERATED_DECREASE * last_evidence.abs()
            step, halved = torch.where(decreased, step / 2, step), halved + decreased
        last_evidence = evidence if iteration else None
        usable = torch.stack([(each.potential.variance.amax() < _LARGEST_VARIANCE) for each in forward]).all()
        proposals, new_scores = _backward(chain, forward, message, natural, cavities, step, solver_iterations)
        usable &= torch.stack([values.isfinite().all() for each in proposals for values in each]).all()
        natural = [
            Natural(*(torch.where(usable, new, old) for new, old in zip(*pair, strict=True)))
            for pair in zip(proposals, natural, strict=True)
        ]
        scores = [
            torch.where(usable, new, 0.0 if old is None else old) for new, old in zip(new_scores, scores, strict=True)
        ]
        log_evidence = torch.where(evidence.isfinite(), evidence, log_evidence)
        step, halved, accepted = torch.where(usable, step, step / 2), halved + ~usable, accepted | usable
    noise = None
    if isinstance(chain.output, ValueOutput) and chain.output.learned:
        old = chain.output.noise_variance.detach()
        noise = torch.where(usable, chain.output.expected_noise(potential, message, y), old)
    return BatchUpdate(natural, output, log_evidence, noise, accepted, halved)


def _forward(chain: Chain, natural: Sequence[Natural], x: Tensor, scores: Sequence[Tensor | None]) -> list[_Forward]:
    signal = Signal(x, None)
    forward = []
    for block, parameters, score in zip(chain.blocks, natural, scores, strict=True):
        before = []
        for transform in block.before:
            before.append(signal)
            signal = transform.forward(signal)
        mean, variance = block.layer.family.moments(parameters)
        potential = forward_moments(block.layer.linear, signal.mean, signal.variance, mean, variance, score)
        forward.append(_Forward(before, signal, mean, variance, potential))
        if block.neuron is not None:
            signal = block.neuron.signal(potential)
    return forward


def _backward(
    chain: Chain,
    forward: Sequence[_Forward],
    message: Message,
    natural: Sequence[Natural],
    cavities: Sequence[Natural],
    step: Tensor,
    solver_iterations: int,
) -> tuple[list[Natural], list[Tensor]]:
    proposals: list[Natural] = []
    scores: list[Tensor] = []
    for index in reversed(range(len(forward))):
        block, here = chain.blocks[index], forward[index]
        linear = block.layer.linear
        observation = Observation(here.inputs.mean, here.inputs.variance, here.potential, message)
        proposals.append(
            block.layer.family.step(linear, observation, natural[index], cavities[index], step, solver_iterations)
        )
        scores.append(message.score)
        if index:
            feedback = Feedback(*input_message(linear, here.inputs.mean, here.mean, here.variance, message))
            for transform, signal in zip(reversed(block.before), reversed(here.before), strict=True):
                feedback = transform.backward(signal, feedback)
            below = chain.blocks[index - 1]
            potential = forward[index - 1].potential
            p = here.before[0].mean if here.before else here.inputs.mean
            assert below.neuron is not None
            log_odds = feedback.score + (p - 0.5) * feedback.curvature
            message = bounded(below.neuron.message(potential, log_odds), potential.variance)
    return proposals[::-1], scores[::-1]
