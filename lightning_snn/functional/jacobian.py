"""Spectra and gains of Jacobians, which show whether gradients reach the first layer of a network.

Each sample has its own Jacobian. Only `eigenvalues` builds it; all other functions use vector-Jacobian products for all
samples of a batch at once. The samples must not affect one another, so set modules with batch statistics to evaluation
mode.

After Stanojevic et al. 2024, arXiv 2306.08744, who show that a common initialization can have eigenvalues far from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_snn.checks import check_integer


@dataclass(frozen=True)
class SlopeStatistics:
    """Statistics of the slopes B of a layer's neurons.

    Attributes:
        minimum: smallest slope.
        maximum: largest slope.
        mean: mean slope.
        std: standard deviation of the slopes, without Bessel's correction.
        not_positive: fraction of slopes of at most 0, whose neurons never spike.
        small: fraction of slopes with |B| < 0.1, whose gradients are large.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    not_positive: float
    small: float


def slope_statistics(slopes: Tensor) -> SlopeStatistics:
    """Compute statistics of slopes.

    Args:
        slopes: slopes B, any shape.

    Raises:
        ValueError: if `slopes` is empty.

    Example:
        >>> slope_statistics(torch.tensor([0.0, 1.0, 1.0, 2.0])).not_positive
        0.25
    """
    if slopes.numel() == 0:
        raise ValueError("Expected argument `slopes` to hold at least one slope, but got none")
    slopes = slopes.detach().double()
    found = (slopes.min(), slopes.max(), slopes.mean(), slopes.std(unbiased=False))
    fractions = ((slopes <= 0).double().mean(), (slopes.abs() < 0.1).double().mean())
    return SlopeStatistics(*(value.item() for value in (*found, *fractions)))


def spectral_radius(
    outputs: Tensor, inputs: Tensor, steps: int = 64, generator: torch.Generator | None = None
) -> Tensor:
    """Compute the spectral radius of the Jacobian J = d outputs / d inputs of each sample, by Arnoldi iteration.

    rho = max |lambda(H)|, where H is the Hessenberg matrix of J^T on the Krylov space of a random vector.

    Exact if `steps` is at least the number of neurons. With fewer steps, the eigenvalues of largest modulus converge
    first. This includes complex pairs, for which plain power iteration does not converge.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients. The graph is retained.
        inputs: shape `(B, ...)` with as many elements per sample as `outputs`.
        steps: number of vector-Jacobian products, at least 1.
        generator: source of the first vector; None is torch's default.

    Returns:
        spectral radii, shape `(B,)`, at least 0.

    Raises:
        ValueError: if the Jacobian is not square, or if `steps` is outside its range.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> spectral_radius(x * torch.tensor([0.5, 1.0, -2.0]), x)
        tensor([2.0000, 2.0000])
    """
    check_integer("steps", steps)
    size = _side(outputs, inputs)
    steps = min(steps, size)
    samples = len(outputs)
    start = _random(outputs, generator).flatten(1)
    basis = [start / start.norm(dim=1, keepdim=True)]
    hessenberg = inputs.new_zeros(samples, steps, steps)
    for step in range(steps):
        vector = _vjp(outputs, inputs, basis[-1].view_as(outputs)).flatten(1)
        before = vector.norm(dim=1, keepdim=True)
        known = torch.stack(basis, 1)
        # two passes make it orthogonal up to rounding
        for _ in range(2):
            overlap = (known @ vector[..., None]).squeeze(2)
            vector = vector - (overlap[:, None] @ known).squeeze(1)
            hessenberg[:, : step + 1, step] += overlap
        norm = vector.norm(dim=1, keepdim=True)
        # once the space is complete, only rounding errors remain
        independent = norm > 100 * torch.finfo(norm.dtype).eps * before
        if step + 1 < steps:
            hessenberg[:, step + 1, step] = torch.where(independent, norm, 0).squeeze(1)
            basis.append(torch.where(independent, vector / norm, 0))
    ritz_values: Tensor = torch.linalg.eigvals(hessenberg)
    return ritz_values.abs().amax(1)


def eigenvalues(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Compute all eigenvalues of the Jacobian d outputs / d inputs of each sample, which is built: for small layers.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients. The graph is retained.
        inputs: shape `(B, ...)` with as many elements N per sample as `outputs`.

    Returns:
        eigenvalues in no particular order, complex, shape `(B, N)`.

    Raises:
        ValueError: if the Jacobian is not square.

    Example:
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> eigenvalues(x * torch.tensor([0.5, -2.0]), x).real
        tensor([[ 0.5000, -2.0000]])
    """
    size = _side(outputs, inputs)
    units = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
    rows = [_vjp(outputs, inputs, unit.expand(len(outputs), -1).reshape(outputs.shape)).flatten(1) for unit in units]
    found: Tensor = torch.linalg.eigvals(torch.stack(rows, 1))
    return found


def largest_singular_value(
    outputs: Tensor, inputs: Tensor, steps: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """Compute the largest singular value of the Jacobian J = d outputs / d inputs of each sample, by power iteration.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients, twice differentiable. The graph is retained.
        inputs: shape `(B, ...)`.
        steps: number of power iterations with J^T and J, at least 1. The result converges from below.
        generator: source of the first vector; None is torch's default.

    Returns:
        largest singular values, shape `(B,)`, at least 0.

    Raises:
        ValueError: if `steps` is outside its range.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> largest_singular_value(x * torch.tensor([0.5, 1.0, -2.0]), x)
        tensor([2., 2.])
    """
    check_integer("steps", steps)
    # J v is the gradient of u -> J^T u against v
    left = torch.zeros_like(outputs, requires_grad=True)
    pulled = _vjp(outputs, inputs, left, create_graph=True)
    vector = _random(outputs, generator)
    value = vector.new_zeros(len(vector))
    for _ in range(steps):
        right = _normalized(_vjp(outputs, inputs, vector))
        vector = _vjp(pulled, left, right)
        value = vector.flatten(1).norm(dim=1)
        vector = _normalized(vector)
    return value


def gain(outputs: Tensor, inputs: Tensor, probes: int = 16, generator: torch.Generator | None = None) -> Tensor:
    """Compute the mean gain of gradients through the Jacobian P = d outputs / d inputs of each sample.

    ||P||_F / sqrt(N), with ||P||_F^2 / N = E |P^T u|^2 / N for standard normal vectors u and N outputs.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients. The graph is retained.
        inputs: shape `(B, ...)`.
        probes: number of random vectors, at least 1. The relative error is about sqrt(1 / (2 probes r)) for a Jacobian
            of effective rank r. With at least as many probes as outputs, unit vectors are used and it is exact.
        generator: source of the vectors; None is torch's default.

    Returns:
        gains, shape `(B,)`, at least 0; 1 if gradients keep their size.

    Raises:
        ValueError: if `probes` is outside its range.

    Example:
        >>> x = torch.ones(2, 4, requires_grad=True)
        >>> gain(3 * x, x)
        tensor([3., 3.])
    """
    check_integer("probes", probes)
    size = outputs[0].numel()
    total = inputs.new_zeros(len(inputs))
    if probes >= size:
        for unit in torch.eye(size, dtype=outputs.dtype, device=outputs.device):
            vector = unit.expand(len(outputs), -1).reshape(outputs.shape)
            total = total + _vjp(outputs, inputs, vector).flatten(1).square().sum(1)
        return (total / size).sqrt()
    for _ in range(probes):
        total = total + _vjp(outputs, inputs, _random(outputs, generator)).flatten(1).square().sum(1)
    return (total / (probes * size)).sqrt()


def joint_gain(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], probes: int = 4, generator: torch.Generator | None = None
) -> Tensor | None:
    """Compute the mean gain of gradients through the Jacobian P of all outputs with respect to all inputs.

    ||P||_F / sqrt(N), with ||P||_F^2 / N = E |P^T u|^2 / N for standard normal vectors u and N outputs in all.

    P covers all samples and time steps. If samples do not affect one another, P is block-diagonal, and the result is
    the root mean square of the gains of the samples.

    Args:
        outputs: one or more tensors computed from `inputs` with gradients, for example one per time step. The graph is
            retained.
        inputs: one or more tensors.
        probes: number of random vectors, at least 1. The relative error is about sqrt(1 / (2 probes r)) for a Jacobian
            of effective rank r, which grows with the number of samples.
        generator: source of the vectors; None is torch's default.

    Returns:
        scalar, at least 0; 1 if gradients keep their size. None if no output depends on any input.

    Raises:
        ValueError: if `probes` is outside its range.

    Example:
        >>> x = torch.ones(2, 4, requires_grad=True)
        >>> joint_gain([x.detach()], [x]) is None
        True
    """
    check_integer("probes", probes)
    size = sum(output.numel() for output in outputs)
    computed = [output for output in outputs if output.requires_grad]
    sources = [each for each in inputs if each.requires_grad]
    if not computed or not sources:
        return None
    total = torch.zeros((), dtype=sources[0].dtype, device=sources[0].device)
    for _ in range(probes):
        vectors = [_random(output, generator) for output in computed]
        pulled = torch.autograd.grad(computed, sources, vectors, retain_graph=True, allow_unused=True)
        found = [each for each in pulled if each is not None]
        if not found:
            return None
        total = total + torch.stack([each.square().sum().to(total.dtype) for each in found]).sum()
    return (total / (probes * size)).sqrt()


def gradient_ratio(norms: Sequence[float]) -> float:
    """Return the ratio of the first to the last gradient norm; inf or nan if the last norm is 0.

    Args:
        norms: gradient norms, from the first layer to the last.

    Raises:
        ValueError: if `norms` is empty.

    Example:
        >>> gradient_ratio([1.0, 3.0, 2.0])
        0.5
    """
    if not norms:
        raise ValueError("Expected argument `norms` to hold at least one norm, but got none")
    if norms[-1] == 0:
        return math.nan if norms[0] == 0 else math.inf
    return norms[0] / norms[-1]


def _side(outputs: Tensor, inputs: Tensor) -> int:
    """Return the number of rows and columns of a sample's square Jacobian."""
    size = inputs[0].numel()
    if outputs[0].numel() != size:
        raise ValueError(
            f"Expected as many outputs as inputs per sample for a spectrum, but got {outputs[0].numel()} for {size}"
        )
    return size


def _vjp(outputs: Tensor, inputs: Tensor, vector: Tensor, create_graph: bool = False) -> Tensor:
    """Return J^T vector of each sample; 0 if the outputs do not depend on the inputs."""
    found: Tensor = torch.autograd.grad(
        outputs, inputs, vector, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )[0]
    return found


def _random(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _normalized(vector: Tensor) -> Tensor:
    norm = vector.flatten(1).norm(dim=1).view(-1, *(1,) * (vector.dim() - 1))
    # a zero Jacobian gives a zero vector
    return vector / torch.where(norm > 0, norm, 1)
