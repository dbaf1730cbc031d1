"""One batch of expectation propagation: messages forward and back through the layers, again and again."""

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

# potentials as wide as this are no longer messages but the start of a divergence
_WIDEST = 1e6
# log-evidence may fall by this share from one iteration to the next before steps are halved
_TOLERATED_FALL = 0.1


@dataclass(frozen=True)
class Heard:
    """What a batch did to the layers.

    Attributes:
        natural: natural parameters of each layer, cavity and batch together.
        output: potentials of the output, before anything was learned from the batch.
        log_evidence: log-probability of the batch's targets by its last finite iteration, the mean over samples.
        noise_variance: of the observations, as the batch explains it; None unless it is learned.
        accepted: whether there was a usable iteration; if not, `natural` is the cavity's.
        halved: how often the steps were halved.
    """

    natural: list[Natural]
    output: Potential
    log_evidence: Tensor
    noise_variance: Tensor | None
    accepted: Tensor
    halved: Tensor


@dataclass
class _Seen:
    """What the forward pass keeps of a block."""

    stages: list[Signal]  # in front of each fixed stage
    inputs: Signal
    mean: Tensor
    variance: Tensor
    potential: Potential


def hear(
    chain: Chain,
    cavities: Sequence[Natural],
    x: Tensor,
    y: Tensor,
    iterations: int,
    damping: float,
    solver_iterations: int,
) -> Heard:
    """Expectation propagation on one batch, with the rest of the data as local prior.

    Proposals that are not finite, or whose potentials are wider than any that mean something, are turned down and
    the steps halved; so are steps where the log-evidence falls by more than a tenth.

    Args:
        chain: the network.
        cavities: natural parameters of each layer without this batch.
        x: inputs `[B, ...]`.
        y: labels `[B]` or values `[B, ...]`.
        iterations: passes forward and back, at least 1.
        damping: length of the steps, in (0, 1].
        solver_iterations: conjugate gradients for each step.
    """
    natural = list(cavities)
    scores: list[Tensor | None] = [None] * len(chain.blocks)
    step = x.new_tensor(damping)
    halved, accepted = x.new_zeros(()), torch.zeros((), dtype=torch.bool, device=x.device)
    before: Tensor | None = None
    for iteration in range(iterations):
        seen = _forward(chain, natural, x, scores)
        potential = seen[-1].potential
        message = bounded(chain.output.message(potential, y), potential.variance)
        evidence = message.log_evidence.flatten(1).sum(1).mean()
        if iteration == 0:
            output, last = potential, evidence
        # what the weights heard from a sample is taken out of its own evidence from the second iteration on
        if before is not None:
            fell = evidence < before - _TOLERATED_FALL * before.abs()
            step, halved = torch.where(fell, step / 2, step), halved + fell
        before = evidence if iteration else None
        usable = torch.stack([(each.potential.variance.amax() < _WIDEST) for each in seen]).all()
        proposals, heard = _backward(chain, seen, message, natural, cavities, step, solver_iterations)
        usable &= torch.stack([values.isfinite().all() for each in proposals for values in each]).all()
        natural = [
            Natural(*(torch.where(usable, new, old) for new, old in zip(*pair, strict=True)))
            for pair in zip(proposals, natural, strict=True)
        ]
        scores = [torch.where(usable, new, 0.0 if old is None else old) for new, old in zip(heard, scores, strict=True)]
        last = torch.where(evidence.isfinite(), evidence, last)
        step, halved, accepted = torch.where(usable, step, step / 2), halved + ~usable, accepted | usable
    noise = None
    if isinstance(chain.output, ValueOutput) and chain.output.learned:
        old = chain.output.noise_variance.detach()
        noise = torch.where(usable, chain.output.expected_noise(potential, message, y), old)
    return Heard(natural, output, last, noise, accepted, halved)


def _forward(chain: Chain, natural: Sequence[Natural], x: Tensor, scores: Sequence[Tensor | None]) -> list[_Seen]:
    signal = Signal(x, None)
    seen = []
    for block, parameters, score in zip(chain.blocks, natural, scores, strict=True):
        stages = []
        for stage in block.before:
            stages.append(signal)
            signal = stage.forward(signal)
        mean, variance = block.layer.family.moments(parameters)
        potential = forward_moments(block.layer.linear, signal.mean, signal.variance, mean, variance, score)
        seen.append(_Seen(stages, signal, mean, variance, potential))
        if block.neuron is not None:
            signal = block.neuron.signal(potential)
    return seen


def _backward(
    chain: Chain,
    seen: Sequence[_Seen],
    message: Message,
    natural: Sequence[Natural],
    cavities: Sequence[Natural],
    step: Tensor,
    solver_iterations: int,
) -> tuple[list[Natural], list[Tensor]]:
    proposals: list[Natural] = []
    scores: list[Tensor] = []
    for index in reversed(range(len(seen))):
        block, here = chain.blocks[index], seen[index]
        linear = block.layer.linear
        observation = Observation(here.inputs.mean, here.inputs.variance, here.potential, message)
        proposals.append(
            block.layer.family.step(linear, observation, natural[index], cavities[index], step, solver_iterations)
        )
        scores.append(message.score)
        if index:
            feedback = Feedback(*input_message(linear, here.inputs.mean, here.mean, here.variance, message))
            for stage, signal in zip(reversed(block.before), reversed(here.stages), strict=True):
                feedback = stage.backward(signal, feedback)
            below = chain.blocks[index - 1]
            potential = seen[index - 1].potential
            p = here.stages[0].mean if here.stages else here.inputs.mean
            assert below.neuron is not None
            log_odds = feedback.score + (p - 0.5) * feedback.curvature
            message = bounded(below.neuron.message(potential, log_odds), potential.variance)
    return proposals[::-1], scores[::-1]
