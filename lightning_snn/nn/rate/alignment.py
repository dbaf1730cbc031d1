"""How close the gradient of rates is to that of backpropagation through time, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.nn.folding import run
from lightning_snn.nn.rate.tape import rate_run

Loss = Callable[[Tensor, Tensor], Tensor]


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
    as in any. A good alignment is necessary and not
    sufficient: on event data windows help where the cosine of a batch does not show it.

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
    loss = _mean_cross_entropy if loss is None else loss
    rates = _gradients(network, x, y, loss, lambda copied: rate_run(copied, x, window, streaming))
    exact = _gradients(network, x, y, loss, lambda copied: run(copied, x))
    if not exact:
        raise ValueError("Expected argument `network` to have parameters that require a gradient, but got none")
    rates["all"], exact["all"] = torch.cat(list(rates.values())), torch.cat(list(exact.values()))
    return {name: _alignment(rates[name], exact[name]) for name in exact}


def _mean_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mean(0), y)


def _gradients(
    network: nn.Module, x: Tensor, y: Tensor, loss: Loss, runner: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Gradient of each module's own parameters, as a vector."""
    copied = copy.deepcopy(network)
    copied.zero_grad()
    with torch.random.fork_rng(_devices(x)), torch.enable_grad():
        loss(runner(copied), y).backward()
    found = {}
    for name, module in copied.named_modules():
        trained = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        if trained:
            # a parameter that the output does not hear has no gradient
            parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
            found[name or type(network).__name__] = torch.cat([part.flatten() for part in parts])
    return found


def _devices(x: Tensor) -> list[int]:
    return [x.device.index] if x.device.type == "cuda" else []


def _alignment(rates: Tensor, exact: Tensor) -> Alignment:
    rates, exact = rates.double(), exact.double()
    norms = rates.norm(), exact.norm()
    cosine = torch.dot(rates, exact) / (norms[0] * norms[1])
    return Alignment(float(cosine.clamp(-1, 1)), float(norms[0] / norms[1]))
