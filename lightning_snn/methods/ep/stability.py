r"""Stability of the iterations of a batch: the longest steps that converge.

An iteration without damping maps the state, weights and scores, to another. Near a fixed point it multiplies
deviations by a matrix J. With steps of length :math:`\eta` a deviation along an eigenvector of eigenvalue
:math:`\lambda` is multiplied by :math:`1 - \eta (1 - \lambda)`, so that the iterations converge if

.. math:: \eta < \eta^* = \frac{2 (1 - \operatorname{Re} \lambda)}{|1 - \lambda|^2} = \frac{2}{1 - \lambda}
    \quad \text{for real } \lambda,

for every eigenvalue, the most negative one first. With several layers of weights every layer answers the whole
residual of the output, which is what makes eigenvalues negative. Those of a single layer are above -1 in every setting
that was tried, so that it needs no damping; for Gaussian values this is a theorem.

The eigenvalues are those of J on the space that the power iteration spans (Arnoldi). J is never built: its product with
a direction is a central difference of two iterations. Scores of hidden neurons are not damped in `update_batch`, which
makes slightly longer steps stable, by up to 10 % in chains of two and three layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_integer
from lightning_snn.methods.ep.batch_update import BatchUpdate, update_batch
from lightning_snn.methods.ep.chain import Chain
from lightning_snn.methods.ep.inputs import chain_of, observed_inputs
from lightning_snn.methods.ep.memory import BatchMemory
from lightning_snn.methods.ep.recurrence import SequenceChain
from lightning_snn.methods.ep.weights import Natural

# share of the stable damping from which steps are too long to be safe on other batches
_SAFE_SHARE = 0.8
# residual of a state, in standard deviations of the weights, from which an estimate there has no meaning
_SETTLED_STATE = 0.1
# error of the eigenvalue, relative to its distance from 1: where iterations end, and where the estimate has settled
_PRECISE, _SETTLED = 0.03, 0.1
# `ep_stability` settles the state to this residual, by steps between these lengths, halved if it has not decreased
_TARGET, _FIRST_DAMPING, _LAST_DAMPING, _ITERATIONS = 0.01, 0.3, 0.03, 10


@dataclass(frozen=True)
class Stability:
    """Stability of the iterations of a batch.

    Attributes:
        eigenvalue: the eigenvalue of an iteration without damping that limits the damping, nan if it is not finite. The
            imaginary part is 0 or, of a pair, positive.
        stable_damping: the damping below which the iterations converge, larger than 0; above 1 all steps do. nan if no
            damping makes them converge from this state.
        settled: whether the estimate means something: the state is within 0.1 standard deviations of a fixed point, the
            eigenvalue is known to a tenth of its distance from 1, and no other one is above 1 by more than that, so
            that short steps do not leave the state fast. Near 0.1 the damping is right to about a fifth.
        residual: distance of the state from a fixed point, see `BatchUpdate.residual`.

    Example:
        >>> stability = Stability(eigenvalue=-4.0, stable_damping=0.4, settled=True, residual=0.01)
        >>> stability.problem(0.3) is None
        True
        >>> stability.problem(0.35)[:76]
        'Expectation propagation takes steps of 0.35, and steps of more than 0.4 do n'
    """

    eigenvalue: complex
    stable_damping: float
    settled: bool
    residual: float

    def problem(self, damping: float) -> str | None:
        """Return what is wrong with a damping and what to do.

        Returns:
            None if the damping is at most 0.8 of the stable one, or if the estimate has not settled.
        """
        if not self.settled or damping <= _SAFE_SHARE * self.stable_damping:
            return None
        return (
            f"Expectation propagation takes steps of {damping:g}, and steps of more than {self.stable_damping:.2g} do "
            f"not converge on a batch like the last one. Reduce `damping` to {_SAFE_SHARE * self.stable_damping:.2g}, "
            "or the batch size"
        )


@torch.no_grad()
def ep_stability(
    network: nn.Module, x: Tensor, y: Tensor, *, iterations: int = 300, solver_iterations: int = 10, steps: int = 12
) -> Stability:
    """Measure the longest steps with which expectation propagation converges on a batch.

    The batch is first iterated to a fixed point with short steps, in float64 where the device has it. If the network
    was trained with it and with ``memory="per_batch"``, its own contribution is excluded from the prior, and the
    iterations start at the weights. Any other batch is new: the weights are its prior. The first batch of a network
    allows the shortest steps, because the weights are not yet known from other batches.

    The network and torch's generators are left unchanged. Costs up to `iterations` iterations of the method for the
    fixed point and two for each of the `steps`, and memory for `steps` copies of weights and scores.

    Args:
        network: from `ExpectationPropagation.prepare`, such as `module.network`.
        x: inputs `[T, B, ...]`.
        y: integer labels `[B]` or values `[B, ...]`.
        iterations: largest number of iterations toward the fixed point, at least 1.
        solver_iterations: conjugate gradient iterations in each of them, at least 1.
        steps: largest number of power iterations, at least 1; they end when the eigenvalue is known to 3 %.

    Returns:
        the eigenvalue, the stable damping, and whether the estimate has settled.

    Raises:
        ValueError: if the network is not from `prepare` or is recurrent, targets do not fit, or a number is below 1.

    Example:
        >>> from lightning_snn.methods import ExpectationPropagation
        >>> network = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(8, 3)))
        >>> x, y = (torch.rand(1, 60, 8) > 0.5).float(), torch.arange(60) % 3
        >>> stability = ep_stability(network, x, y)
        >>> stability.settled, stability.stable_damping > 1
        (True, True)
    """
    for name, count in (("iterations", iterations), ("solver_iterations", solver_iterations), ("steps", steps)):
        check_integer(name, count)
    chain = chain_of(network)
    if isinstance(chain, SequenceChain):
        raise ValueError(
            "Expected argument `network` to have no recurrent layer, whose stability is not measured, but got "
            f"{type(network).__name__}. Compare fits of different `damping` on validation data"
        )
    layers = [block.layer for block in chain.blocks]
    with torch.autocast(x.device.type, enabled=False):
        rates, targets = observed_inputs(network, x, y)
        memory = BatchMemory()
        cavities = _wide(memory.cavities(layers, rates, y, None))
        natural = _wide([layer.natural for layer in layers]) if memory.returning(layers) else None
        rates, targets = (_as_wide(values) if values.is_floating_point() else values for values in (rates, targets))
        scores: Sequence[Tensor] | None = None
        damping, residual = _FIRST_DAMPING, math.inf
        for first in range(0, iterations, _ITERATIONS):
            count = min(_ITERATIONS, iterations - first)
            update = update_batch(chain, cavities, rates, targets, count, damping, solver_iterations, natural, scores)
            natural, scores, before, residual = update.natural, update.scores, residual, update.residual.item()
            if residual < _TARGET:
                break
            damping = damping if residual < before else max(damping / 2, _LAST_DAMPING)
        return stability_at(chain, cavities, rates, targets, update, solver_iterations, steps)


@torch.no_grad()
def stability_at(
    chain: Chain,
    cavities: Sequence[Natural],
    x: Tensor,
    y: Tensor,
    update: BatchUpdate,
    solver_iterations: int | Sequence[int],
    steps: int,
) -> Stability:
    """Measure the stability of the iterations of a batch where an update ended, which should be near a fixed point.

    Args:
        chain: the network.
        cavities: natural parameters of each layer without this batch.
        x: inputs `[B, ...]`.
        y: labels `[B]` or values `[B, ...]`.
        update: the last update by this batch.
        solver_iterations: conjugate gradient iterations per step, one for all layers or one per layer.
        steps: largest number of power iterations, at least 1. Each costs two iterations of `update_batch`.
    """
    natural, scores = update.natural, update.scores
    parts = [*(values for pair in natural for values in pair), *scores]
    sizes = [values.shape for values in parts]
    # deviations in units of their size: of precisions, of standard deviations of means, of scores
    units = []
    for block, parameters in zip(chain.blocks, natural, strict=True):
        precision = parameters.precision.abs()
        units += [precision + precision.mean(), block.layer.family.moments(parameters)[1].rsqrt()]
    units += [score.square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny).expand_as(score) for score in scores]
    scale = _joined(units)
    state = _joined(parts) / scale

    def iterated(point: Tensor) -> Tensor:
        flat = (point * scale).split([size.numel() for size in sizes])
        here = [values.view(size) for values, size in zip(flat, sizes, strict=True)]
        weights = [Natural(*here[index : index + 2]) for index in range(0, 2 * len(natural), 2)]
        after = update_batch(chain, cavities, x, y, 1, 1.0, solver_iterations, weights, here[2 * len(natural) :])
        return _joined([*(values for pair in after.natural for values in pair), *after.scores]) / scale

    length = torch.finfo(x.dtype).eps ** (1 / 3) * math.sqrt(len(state))
    direction = torch.randn(len(state), generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    basis = [direction / direction.norm()]
    projected = torch.zeros(steps + 1, steps, dtype=torch.float64)
    found = _UNKNOWN
    for step in range(steps):
        moved = length * basis[step]
        image = (iterated(state + moved) - iterated(state - moved)) / (2 * length)
        span = torch.stack(basis)
        for _ in range(2):  # rounding errors of the first pass are removed by the second
            shares = span @ image
            image = image - shares @ span
            projected[: step + 1, step] += shares.cpu()
        remaining = image.norm()
        projected[step + 1, step] = remaining.item()
        if not projected.isfinite().all():
            break
        found = _limit(projected[: step + 2, : step + 1])
        if found.error < _PRECISE:
            break
        basis.append(image / remaining)
    residual = update.residual.item()
    settled = residual < _SETTLED_STATE and max(found.error, found.growth) < _SETTLED
    return Stability(found.eigenvalue, found.damping, settled, residual)


@dataclass(frozen=True)
class _Limit:
    """Eigenvalue that limits the damping, its error, and how far another one is above 1, relative to its distance."""

    eigenvalue: complex
    damping: float
    error: float
    growth: float


_UNKNOWN = _Limit(complex(math.nan), math.nan, math.inf, math.inf)


def _limit(projected: Tensor) -> _Limit:
    """Return the eigenvalue that limits the damping, of an upper Hessenberg matrix `[K + 1, K]`."""
    values, vectors = torch.linalg.eig(projected[:-1])
    distance = 1 - values
    converging = values.real < 1
    if not converging.any():
        return _UNKNOWN
    dampings = torch.where(converging, 2 * distance.real / distance.abs().square(), torch.inf)
    index = int(dampings.argmin())
    tail = projected[-1, -1] * vectors[-1, index].abs() / vectors[:, index].norm()
    value, scale = complex(values[index]), distance[index].abs()
    return _Limit(
        complex(value.real, abs(value.imag)),
        dampings[index].item(),
        (tail / scale).item(),
        ((values.real.max() - 1) / scale).item(),
    )


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in values])


def _as_wide(values: Tensor) -> Tensor:
    return values if values.device.type == "mps" else values.double()


def _wide(natural: Sequence[Natural]) -> list[Natural]:
    return [Natural(*map(_as_wide, values)) for values in natural]
