"""Whether gradients reach the first layer of a network: spectra of Jacobians and verdicts about them.

Jacobians are of one sample each and, but for `eigenvalues`, never built: all is found by vector-Jacobian products, for
the samples of a batch at once, so that any module does whose samples do not see one another (in evaluation mode, that
is).

After Stanojevic et al. 2024, arXiv 2306.08744, who show how an initialization that looks harmless has eigenvalues far
from 1; the thresholds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_integer

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Band:
    """Where a quantity is healthy, and where it may still do.

    Attributes:
        passes: lowest and highest value that are ok.
        warns: lowest and highest value that only warn; what is outside of it fails, and so does nan.
    """

    passes: tuple[float, float]
    warns: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.warns
        if not low <= self.passes[0] <= self.passes[1] <= high:
            raise ValueError(
                f"Expected a band that passes {self.passes} to be within one that warns, but got {self.warns}"
            )

    def verdict(self, value: float) -> Verdict:
        """What the band says of a value."""
        if self.passes[0] <= value <= self.passes[1]:
            return "ok"
        return "warn" if self.warns[0] <= value <= self.warns[1] else "fail"


@dataclass(frozen=True)
class Thresholds:
    """When an initialization is ok.

    Bands of spiking layers lie between networks that learn and the same ones that are silent or saturated. Networks of
    this library, of snntorch and of SpikingJelly as they are initialized, on digits and events, had membranes of a
    standard deviation of 0.2 to 2.1 thresholds, and hidden rates of 0.0015 to 0.18; with weights x 0.01 at most 0.02
    and 0, with weights x 100 from 85 on and about 0.5. Twenty layers of a surrogate derivative too narrow for them had
    a gradient ratio of 0.0035.

    Large membranes are judged by what became of them. A 784-100-10 network of snntorch's `Leaky` neurons, its loss on
    the membranes, its weights and biases x 1, 3, 5, 10, 20, 50, had hidden membranes of standard deviation 0.8, 2.2,
    3.9, 8.7, 19, 49, and after 6 epochs of 1,024 digits 87, 80, 63, 34, 24, 15 % of others right by its spikes (mean
    of seeds 0 and 1); with `LIF` and a linear readout 86, 87, 84, 64, 35, 12 %. Layers that are silent at first may
    still learn where their membranes are near the threshold: weights x 0.05 came to 80 and 83 %, and fail.

    Attributes:
        unit_slope: largest distance of a slope from 1 where slopes are 1 by construction; more fails.
        smallest_slope: slopes below warn, and from 0 down fail.
        slope_spread: standard deviation of slopes over their mean, above which they warn.
        spectral_radius: of the Jacobian of a layer with as many neurons as inputs, mean over samples.
        depth_gain: of the product of Jacobians over depth, ||P||_F / sqrt(N).
        gradient_ratio: of the norms of the first and the last weights' gradients.
        active_fraction: of neurons and samples that are active, in a layer of rectifiers.
        firing_rate: spikes per neuron and time step of a spiking layer.
        dead_share: of the neurons of a spiking layer that never spike.
        saturated_share: of the neurons of a spiking layer that spike in nearly every step.
        membrane_sd: standard deviation of a spiking layer's membranes in units of the threshold.
        spike_gain: of the Jacobian of a spiking layer with respect to the one before.
    """

    unit_slope: float = 1e-6
    smallest_slope: float = 0.1
    slope_spread: float = 0.5
    spectral_radius: Band = Band((0.8, 1.25), (0.5, 2.0))
    depth_gain: Band = Band((0.1, 10.0), (1e-3, 1e3))
    gradient_ratio: Band = Band((0.1, 10.0), (1e-2, 1e2))
    active_fraction: Band = Band((0.2, 0.8), (0.0, 1.0))
    firing_rate: Band = Band((1e-3, 0.5), (1e-4, 0.8))
    dead_share: Band = Band((0.0, 0.8), (0.0, 0.95))
    saturated_share: Band = Band((0.0, 0.1), (0.0, 0.5))
    membrane_sd: Band = Band((0.1, 3.0), (0.02, 8.0))
    spike_gain: Band = Band((0.1, 10.0), (1e-3, 1e3))


@dataclass(frozen=True)
class SlopeStatistics:
    """Slopes B of a layer's neurons.

    Attributes:
        minimum, maximum, mean, deviation: of the slopes; the deviation is that of the population.
        not_positive: fraction of slopes of at most 0, whose neurons never spike.
        small: fraction of slopes with |B| < 0.1, whose gradients are large.
    """

    minimum: float
    maximum: float
    mean: float
    deviation: float
    not_positive: float
    small: float

    def verdict(self, thresholds: Thresholds, unit: bool = False) -> Verdict:
        """What the thresholds say; `unit`: of slopes that are 1 by construction."""
        if unit:
            return "ok" if max(1 - self.minimum, self.maximum - 1) <= thresholds.unit_slope else "fail"
        if not self.minimum > 0:
            return "fail"
        wide = self.deviation > thresholds.slope_spread * self.mean
        return "warn" if wide or self.minimum < thresholds.smallest_slope else "ok"


def slope_statistics(slopes: Tensor) -> SlopeStatistics:
    """Statistics of slopes of any shape.

    Raises:
        ValueError: if there is none.
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
    """Largest modulus of the eigenvalues of the Jacobian d outputs / d inputs of each sample.

    rho = max |lambda(H)|, H the Hessenberg matrix of J^T on the Krylov space of a random vector (Arnoldi)

    Exact where `steps` is at least the number of neurons; below it the outermost eigenvalues come first, complex pairs
    included, between which a plain power iteration does not converge.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients. The graph stays.
        inputs: shape `(B, ...)` with as many elements a sample as `outputs`.
        steps: vector-Jacobian products, at least 1.
        generator: of the first vector; None is torch's own.

    Returns:
        shape `(B,)`, from 0.

    Raises:
        ValueError: if the Jacobian is not square, or `steps` is outside its range.

    Example:
        >>> x = torch.randn(5, 4, requires_grad=True)
        >>> spectral_radius(torch.nn.Linear(4, 4)(x).relu(), x).shape
        torch.Size([5])
    """
    check_integer("steps", steps)
    size = _square(outputs, inputs)
    steps = min(steps, size)
    samples = len(outputs)
    start = _random(outputs, generator).flatten(1)
    basis = [start / start.norm(dim=1, keepdim=True)]
    hessenberg = inputs.new_zeros(samples, steps, steps)
    for step in range(steps):
        vector = _pull(outputs, inputs, basis[-1].view_as(outputs)).flatten(1)
        before = vector.norm(dim=1, keepdim=True)
        known = torch.stack(basis, 1)
        # twice is enough to be orthogonal up to rounding
        for _ in range(2):
            overlap = (known @ vector[..., None]).squeeze(2)
            vector = vector - (overlap[:, None] @ known).squeeze(1)
            hessenberg[:, : step + 1, step] += overlap
        norm = vector.norm(dim=1, keepdim=True)
        # rounding is all that is left where the space is complete: another direction would be noise
        left = norm > 100 * torch.finfo(norm.dtype).eps * before
        if step + 1 < steps:
            hessenberg[:, step + 1, step] = torch.where(left, norm, 0).squeeze(1)
            basis.append(torch.where(left, vector / norm, 0))
    return torch.linalg.eigvals(hessenberg).abs().amax(1)


def eigenvalues(outputs: Tensor, inputs: Tensor) -> Tensor:
    """All eigenvalues of the Jacobian d outputs / d inputs of each sample, which is built: for small layers.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients. The graph stays.
        inputs: shape `(B, ...)` with as many elements N a sample as `outputs`.

    Returns:
        complex, shape `(B, N)`, in no order.

    Raises:
        ValueError: if the Jacobian is not square.
    """
    size = _square(outputs, inputs)
    units = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
    rows = [_pull(outputs, inputs, unit.expand(len(outputs), -1).reshape(outputs.shape)).flatten(1) for unit in units]
    return torch.linalg.eigvals(torch.stack(rows, 1))


def largest_singular_value(
    outputs: Tensor, inputs: Tensor, steps: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """Largest singular value of the Jacobian d outputs / d inputs of each sample, by power iteration with J^T and J.

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients, twice differentiable. The graph stays.
        inputs: shape `(B, ...)`.
        steps: power iterations, at least 1. The value comes from below.
        generator: of the first vector; None is torch's own.

    Returns:
        shape `(B,)`, from 0.

    Raises:
        ValueError: if `steps` is outside its range.
    """
    check_integer("steps", steps)
    # J v is the gradient of u -> J^T u against v
    left = torch.zeros_like(outputs, requires_grad=True)
    pulled = _pull(outputs, inputs, left, create_graph=True)
    vector = _random(outputs, generator)
    value = vector.new_zeros(len(vector))
    for _ in range(steps):
        right = _normalized(_pull(outputs, inputs, vector))
        vector = _pull(pulled, left, right)
        value = vector.flatten(1).norm(dim=1)
        vector = _normalized(vector)
    return value


def gain(outputs: Tensor, inputs: Tensor, probes: int = 16, generator: torch.Generator | None = None) -> Tensor:
    """How the Jacobian P = d outputs / d inputs of each sample scales gradients on average, ||P||_F / sqrt(N).

    ||P||_F^2 / N = E |P^T u|^2 / N for u of independent standard normal components, N the number of outputs

    Args:
        outputs: shape `(B, ...)`, computed from `inputs` with gradients. The graph stays.
        inputs: shape `(B, ...)`.
        probes: random vectors, at least 1. The relative error is about sqrt(1 / (2 probes r)) for a Jacobian of
            effective rank r; where there are at least as many probes as outputs, unit vectors make it exact.
        generator: of the vectors; None is torch's own.

    Returns:
        shape `(B,)`, from 0: 1 where gradients keep their size.

    Raises:
        ValueError: if `probes` is outside its range.
    """
    check_integer("probes", probes)
    size = outputs[0].numel()
    total = inputs.new_zeros(len(inputs))
    if probes >= size:
        for unit in torch.eye(size, dtype=outputs.dtype, device=outputs.device):
            vector = unit.expand(len(outputs), -1).reshape(outputs.shape)
            total = total + _pull(outputs, inputs, vector).flatten(1).square().sum(1)
        return (total / size).sqrt()
    for _ in range(probes):
        total = total + _pull(outputs, inputs, _random(outputs, generator)).flatten(1).square().sum(1)
    return (total / (probes * size)).sqrt()


def joint_gain(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], probes: int = 4, generator: torch.Generator | None = None
) -> Tensor | None:
    """How the Jacobian P of all outputs with respect to all inputs, over all samples and time steps, scales gradients
    on average, ||P||_F / sqrt(N).

    ||P||_F^2 / N = E |P^T u|^2 / N for u of independent standard normal components, N the number of all outputs

    Samples that do not see one another make P a block for each: then it is the root mean square of their gains.

    Args:
        outputs: one tensor or more, computed from `inputs` with gradients: those of each time step, say. The graph
            stays.
        inputs: one tensor or more.
        probes: random vectors, at least 1. The relative error is about sqrt(1 / (2 probes r)) for a Jacobian of
            effective rank r, which grows with the number of samples.
        generator: of the vectors; None is torch's own.

    Returns:
        a scalar, from 0: 1 where gradients keep their size. None if no output is computed from any input.

    Raises:
        ValueError: if `probes` is outside its range.
    """
    check_integer("probes", probes)
    size = sum(output.numel() for output in outputs)
    computed = [output for output in outputs if output.requires_grad]
    heard = [given for given in inputs if given.requires_grad]
    if not computed or not heard:
        return None
    total = torch.zeros((), dtype=heard[0].dtype, device=heard[0].device)
    for _ in range(probes):
        vectors = [_random(output, generator) for output in computed]
        pulled = torch.autograd.grad(computed, heard, vectors, retain_graph=True, allow_unused=True)
        found = [each for each in pulled if each is not None]
        if not found:
            return None
        total = total + torch.stack([each.square().sum().to(total.dtype) for each in found]).sum()
    return (total / (probes * size)).sqrt()


def gradient_ratio(norms: Sequence[float]) -> float:
    """Norm of the first over that of the last gradient: inf or nan where the last is 0.

    Raises:
        ValueError: if there are no norms.
    """
    if not norms:
        raise ValueError("Expected argument `norms` to hold at least one norm, but got none")
    if norms[-1] == 0:
        return math.nan if norms[0] == 0 else math.inf
    return norms[0] / norms[-1]


def _square(outputs: Tensor, inputs: Tensor) -> int:
    """Number of rows and of columns of a sample's Jacobian."""
    size = inputs[0].numel()
    if outputs[0].numel() != size:
        raise ValueError(
            f"Expected as many outputs as inputs a sample for spectra, but got {outputs[0].numel()} for {size}"
        )
    return size


def _pull(outputs: Tensor, inputs: Tensor, vector: Tensor, create_graph: bool = False) -> Tensor:
    """J^T vector of each sample; 0 where the outputs do not hear the inputs."""
    found = torch.autograd.grad(
        outputs, inputs, vector, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )[0]
    return found


def _random(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _normalized(vector: Tensor) -> Tensor:
    norm = vector.flatten(1).norm(dim=1).view(-1, *(1,) * (vector.dim() - 1))
    # a Jacobian of zeros leaves nothing to divide
    return vector / torch.where(norm > 0, norm, 1)
