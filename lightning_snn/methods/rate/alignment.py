"""How close the gradient of rates is to that of backpropagation through time, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.methods.task import Loss, mean_cross_entropy
from lightning_snn.nn.folding import run


class Alignment(NamedTuple):
    """One gradient against another.

    Attributes:
        cosine: of the angle between the gradient of rates and that of backpropagation through time, in [-1, 1]; nan
            where one of them is zero.
        norm_ratio: norm of the first over that of the second, from 0.
    """

    cosine: float
    norm_ratio: float


def gradient_alignment(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss | None = None,
    window: int = 1,
    streaming: bool = False,
) -> dict[str, Alignment]:
    """Cosine and norm ratio of the gradient of `rate_run` against that of `run`, per layer and as a whole.

    Both gradients are taken on copies, in the network's mode of training or evaluation and from the same random state,
    so that nothing is left behind: no gradient, no running statistics, no draw. Forward hooks are called in these runs
    as in any. A good alignment is necessary and not sufficient: on event data windows help where the cosine of a batch
    does not show it.

    Args:
        network: a plain module that `rate_run` takes.
        batch: inputs `[T, B, ...]` and targets `[B, ...]`.
        loss: from outputs `[T, B, ...]` and targets to a scalar; None is cross-entropy of the mean over time.
        window, streaming: as in `rate_run`.

    Returns:
        by the name of each module that has trained parameters of its own, in order of registration; the whole gradient
        under ``"all"``.

    Raises:
        ValueError: if no parameter is trained, or as in `rate_run`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(0.2), nn.Linear(8, 3))
        >>> gradient_alignment(network, (torch.rand(6, 2, 4), torch.tensor([0, 2])))["2"].cosine
        1.0
    """
    x, y = batch
    chosen = mean_cross_entropy if loss is None else loss
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("Expected argument `network` to have parameters that require a gradient, but got none")
    rates = gradients_of_modules(
        network, copy.deepcopy, lambda twin: chosen(rate_run(twin, x, window, streaming), y).backward()
    )
    exact = gradients_of_modules(network, copy.deepcopy, lambda twin: chosen(run(twin, x), y).backward())
    return alignments(rates, exact)


def gradients_of_modules(
    module: nn.Module, copied: Callable[[nn.Module], nn.Module], backward: Callable[[nn.Module], object]
) -> dict[str, Tensor]:
    """Gradient of each module's own parameters, as a vector, taken on a copy from the random state as it is."""
    twin = copied(module)
    twin.zero_grad()
    devices = {parameter.device.index for parameter in twin.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
        backward(twin)
    found = {}
    for name, part in twin.named_modules():
        trained = [parameter for parameter in part.parameters(recurse=False) if parameter.requires_grad]
        if trained:
            # a parameter that the loss does not hear has no gradient
            parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
            found[name or type(twin).__name__] = torch.cat([each.flatten() for each in parts])
    return found


def alignments(rates: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, Alignment]:
    """One set of gradients against another, by module and, under "all", as a whole."""
    found = {name: _alignment(rates[name], exact[name]) for name in exact}
    return {**found, "all": _alignment(torch.cat(list(rates.values())), torch.cat(list(exact.values())))}


def _alignment(rates: Tensor, exact: Tensor) -> Alignment:
    rates, exact = rates.double(), exact.double()
    norms = rates.norm(), exact.norm()
    cosine = torch.dot(rates, exact) / (norms[0] * norms[1])
    return Alignment(float(cosine.clamp(-1, 1)), float(norms[0] / norms[1]))
