"""Linear and convolutional layers whose weights are distributions, held as natural parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.functional.linear_maps import ConvolutionMap, DenseMap, LinearMap
from lightning_snn.methods.ep.sites import SiteMemory
from lightning_snn.methods.ep.transforms import pair
from lightning_snn.methods.ep.weights import GaussianWeights, LevelWeights, Natural


class MessageLayer(nn.Module):
    """A linear layer that learns by messages: a distribution over each weight, the prior it began with, and sites.

    Called on a tensor it is the linear layer of its mean weights, or of the most probable ones (`hard`).

    Attributes:
        linear: the linear map; a bias is the last column of the weights.
        family: the kind of weights.
        hard: use the most probable weights in place of their means.
        precision, precision_mean: natural parameters `[O, I]`.
        prior_precision, prior_precision_mean: those of the prior.
        sites: what the batches have added.
    """

    precision: nn.Parameter
    precision_mean: nn.Parameter
    prior_precision: Tensor
    prior_precision_mean: Tensor

    def __init__(
        self, linear: LinearMap, like: Tensor, family: GaussianWeights | LevelWeights, hard: bool = False
    ) -> None:
        super().__init__()
        self.linear, self.family, self.hard = linear, family, hard
        prior = family.prior(like)
        self.precision, self.precision_mean = (nn.Parameter(values) for values in prior)
        self.register_buffer("prior_precision", prior.precision.clone())
        self.register_buffer("prior_precision_mean", prior.precision_mean.clone())
        self.sites = SiteMemory()

    @property
    def natural(self) -> Natural:
        """The natural parameters, apart from autograd."""
        return Natural(self.precision.detach(), self.precision_mean.detach())

    @property
    def prior(self) -> Natural:
        """The natural parameters of the prior."""
        return Natural(self.prior_precision, self.prior_precision_mean)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of the weights as they predict."""
        if self.hard and isinstance(self.family, LevelWeights):
            return self.family.most_probable(self.natural)
        return self.family.moments(self.natural)

    def draw(self) -> Tensor:
        """Weights drawn from their distribution, with torch's generator; most probable ones where they are `hard`."""
        if not self.hard or not isinstance(self.family, LevelWeights):
            return self.family.draw(self.natural)
        mean, variance = self.moments()
        return mean + variance.sqrt() * torch.randn_like(mean)

    def without(self, site: Natural | None) -> Natural:
        """The cavity: natural parameters without a site, precisions of Gaussian weights kept positive."""
        if site is None:
            return self.natural
        precision, precision_mean = (values - part for values, part in zip(self.natural, site, strict=True))
        # levels have a prior precision of 0, and are no less a distribution where theirs is negative
        least = torch.where(self.prior_precision > 0, 1e-3 * self.prior_precision, -torch.inf)
        return Natural(torch.maximum(precision, least), precision_mean)

    def without_share(self, share: Tensor) -> Natural:
        """The cavity where sites are not told apart: a share of all that data has added is taken away."""
        added = (values - prior for values, prior in zip(self.natural, self.prior, strict=True))
        return self.without(Natural(*(share * values for values in added)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear.apply(x, self.moments()[0])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.sites.settle(self.natural)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"{tuple(self.precision.shape)}, {self.linear}, {self.family}" + (", hard=True" if self.hard else "")


def linear_map_of(layer: nn.Linear | nn.Conv2d) -> LinearMap:
    """The linear map of a layer.

    Raises:
        ValueError: for a padding that is no number of zeros.
    """
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return DenseMap(bias)
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ValueError(
            f"Expected padding by a number of zeros, but got padding={layer.padding!r}, "
            f"padding_mode={layer.padding_mode!r}"
        )
    return ConvolutionMap(
        layer.in_channels,
        pair(layer.kernel_size),
        pair(layer.stride),
        pair(layer.padding),
        pair(layer.dilation),
        layer.groups,
        bias,
    )


def empty_weights(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """An empty `[O, I]` for the weights of a layer and, where it has one, its bias."""
    columns = layer.weight[0].numel() + (layer.bias is not None)
    return layer.weight.new_empty(len(layer.weight), columns)
