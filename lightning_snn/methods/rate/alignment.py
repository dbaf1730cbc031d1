"""Alignment of the gradients of rate-based backpropagation and backpropagation through time, per layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.methods.tasks import Loss, mean_cross_entropy
from lightning_snn.nn.folding import run


class Alignment(NamedTuple):
    """Alignment of the gradient of rates with that of backpropagation through time.

    Attributes:
        cosine: cosine of the angle between the two gradients, in [-1, 1]; nan if one of them is zero.
        norm_ratio: norm of the gradient of rates over that of backpropagation through time, at least 0.

    Example:
        >>> Alignment(cosine=0.9, norm_ratio=1.1).cosine
        0.9
    """

    cosine: float
    norm_ratio: float


def gradient_alignment(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss | None = None,
    window: int = 1,
    streaming: bool = False,
    link: bool = False,
) -> dict[str, Alignment]:
    """Compare the gradient of `rate_run` with that of `run` by cosine and norm ratio, per layer and as a whole.

    Both gradients are computed on copies, in the training or evaluation mode of the network and from the same random
    state. The network keeps its gradients and running statistics, and the random state does not change. Forward hooks
    are called in these runs too. A good alignment is necessary but not sufficient for training as well. For what makes
    the difference, and the number of windows, see `gradient_decomposition`.

    Args:
        network: a plain module that `rate_run` supports.
        batch: inputs `[T, B, ...]` and targets `[B, ...]`.
        loss: from outputs `[T, B, ...]` and targets to a scalar; None is the cross-entropy of the mean over time.
        window: as in `rate_run`.
        streaming: as in `rate_run`.
        link: as in `rate_run`.

    Returns:
        The alignment by name of each module with trained parameters of its own, in order of registration, and that of
        the whole gradient under ``"all"``.

    Raises:
        ValueError: if no parameter is trained, or as in `rate_run`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(0.2), nn.Linear(8, 3))
        >>> gradient_alignment(network, (torch.rand(6, 2, 4), torch.tensor([0, 2])))["2"].cosine
        1.0
    """
    x, y = batch
    chosen = mean_cross_entropy if loss is None else loss
    return compare_gradients(
        "network",
        network,
        copy.deepcopy,
        lambda copied: chosen(rate_run(copied, x, window, streaming, link=link), y).backward(),
        lambda copied: chosen(run(copied, x), y).backward(),
    )


def compare_gradients(
    argument: str,
    module: nn.Module,
    make_copy: Callable[[nn.Module], nn.Module],
    rate_backward: Callable[[nn.Module], object],
    backward: Callable[[nn.Module], object],
) -> dict[str, Alignment]:
    """Return the alignment of two gradients of a module, by submodule and, under "all", as a whole.

    Args:
        argument: name of the module in error messages.
        module: the module.
        make_copy: returns a copy of the module.
        rate_backward: computes the gradient of rates of a copy.
        backward: computes the gradient of backpropagation through time of a copy.

    Raises:
        ValueError: if no parameter is trained.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(f"Expected argument `{argument}` to have parameters that require a gradient, but got none")
    rates = _gradients_of_modules(make_copy(module), rate_backward)
    exact = _gradients_of_modules(make_copy(module), backward)
    found = {name: _alignment(rates[name], exact[name]) for name in exact}
    return {**found, "all": _alignment(torch.cat(list(rates.values())), torch.cat(list(exact.values())))}


def _gradients_of_modules(copied: nn.Module, backward: Callable[[nn.Module], object]) -> dict[str, Tensor]:
    """Compute the gradient of the own parameters of each submodule, as a vector, and restore the random state."""
    copied.zero_grad()
    devices = {parameter.device.index for parameter in copied.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
        backward(copied)
    found = {}
    for name, part in copied.named_modules():
        trained = [parameter for parameter in part.parameters(recurse=False) if parameter.requires_grad]
        if trained:
            # a parameter that the loss does not depend on has no gradient
            parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
            found[name or type(copied).__name__] = torch.cat([each.flatten() for each in parts])
    return found


def _alignment(rates: Tensor, exact: Tensor) -> Alignment:
    rates, exact = rates.double(), exact.double()
    norms = rates.norm(), exact.norm()
    cosine = torch.dot(rates, exact) / (norms[0] * norms[1])
    return Alignment(float(cosine.clamp(-1, 1)), float(norms[0] / norms[1]))
