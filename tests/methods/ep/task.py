"""Networks of messages at a small size, and data whose inputs are binary and correlated, as images are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn import LIF
from lightning_snn.methods import ExpectationPropagation, Progress
from lightning_snn.methods.ep import MessageLayer, MessageNetwork, Natural, update_batch
from lightning_snn.methods.ep.batch_update import BatchUpdate
from lightning_snn.methods.tasks import Regression


def digits(
    samples: int, inputs: int = 24, classes: int = 3, flips: float = 0.15, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Binary inputs `[B, N]` and labels `[B]`: what all classes share, what is a class's own, and pixels flipped."""
    shapes = torch.Generator().manual_seed(100)
    common = torch.rand(inputs, generator=shapes) < 0.4
    own = torch.rand(classes, inputs, generator=shapes) < 0.3
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (samples,), generator=generator)
    flipped = torch.rand(samples, inputs, generator=generator) < flips
    return ((common ^ own)[y] ^ flipped).double(), y


def dense(*sizes: int, bias: bool = True) -> nn.Sequential:
    """Linear layers of these sizes with neurons between them, in float64."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias), LIF()]
    return nn.Sequential(*layers[:-1]).double()


def method_for(network: nn.Module, regression: bool = False, **options: Any) -> ExpectationPropagation:
    """The method with settings that suit these sizes, whatever its defaults are."""
    count = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in network.modules())
    settings: dict[str, Any] = {
        "iterations": 10,
        "damping": 0.3,
        "solver_iterations": 5,
        "prior_variance": 0.1,
        "prior_split": 0.0,
    }
    if count > 1:
        settings |= {"prior_variance": [1.0] * (count - 1) + [10.0], "prior_split": 0.5}
    method = ExpectationPropagation(**(settings | options))
    if regression:
        method.task = Regression()
    return method


def prepared(network: nn.Module, regression: bool = False, seed: int = 0, **options: Any) -> MessageNetwork:
    """The network as messages train it."""
    method = method_for(network, regression, **options)
    torch.manual_seed(seed)
    network = method.prepare(network)
    assert isinstance(network, MessageNetwork)
    return network


def updated(
    network: MessageNetwork,
    x: Tensor,
    y: Tensor,
    iterations: int = 10,
    damping: float = 0.3,
    solver_iterations: int = 5,
    cavities: Sequence[Natural] | None = None,
    start: Sequence[Natural] | None = None,
    scores: Sequence[Tensor] | None = None,
) -> BatchUpdate:
    """Return the update by a batch of the network as it is."""
    cavities = [block.layer.natural for block in network.chain.blocks] if cavities is None else cavities
    with torch.no_grad():
        return update_batch(network.chain, cavities, x, y, iterations, damping, solver_iterations, start, scores)


class Steps:
    """Training by hand, in the order in which batches are given."""

    def __init__(self, network: nn.Module, regression: bool = False, seed: int = 0, **options: Any) -> None:
        self.method = method_for(network, regression, **options)
        torch.manual_seed(seed)
        self.network = self.method.prepare(network)
        assert isinstance(self.network, MessageNetwork)
        self.layers = [block.layer for block in self.network.chain.blocks]
        self.optimizer = self.method.configure_optimizer(self.network)

    def ask(self, x: Tensor, y: Tensor, train_size: int | None = None) -> None:
        """Leave the displacement that a batch `[B, ...]` requests in the gradients."""
        self.method.progress = Progress(0.0, train_size)
        self.method.training_step(self.network, x[None], y).objective.backward()

    def take(self, x: Tensor, y: Tensor, batches: Sequence[Tensor], train_size: int | None = None) -> None:
        """A step for each batch of samples."""
        for batch in batches:
            self.optimizer.zero_grad()
            self.ask(x[batch], y[batch], train_size)
            self.optimizer.step()

    def update_sites(self) -> None:
        """Update sites as the next batch would."""
        for layer in self.layers:
            layer.sites.update(layer.natural)


def assert_prior_and_sites_add_up(layers: Sequence[MessageLayer], tolerance: float = 1e-10) -> None:
    """The natural parameters of every layer are those of its prior and of all its sites."""
    for layer in layers:
        layer.sites.update(layer.natural)
        sites = [site for key in layer.sites._sites if (site := layer.sites.site(key)) is not None]
        assert sites
        for values, prior, *parts in zip(layer.natural, layer.prior, *sites, strict=True):
            torch.testing.assert_close(values, prior + torch.stack(parts).sum(0), rtol=tolerance, atol=tolerance)
