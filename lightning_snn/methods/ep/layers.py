"""Linear and convolutional layers with a distribution over each weight, stored as natural parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.functional.linear_maps import ConvolutionMap, DenseMap, LinearMap
from lightning_snn.methods.ep.sites import SiteMemory
from lightning_snn.methods.ep.transforms import pair
from lightning_snn.methods.ep.weights import GaussianWeights, LevelWeights, Natural


class MessageLayer(nn.Module):
    """Linear layer trained by messages: a distribution over each weight, its prior, and the sites of batches.

    A call applies the linear map with the means of the weights, or with the most probable weights (`hard`).

    Args:
        linear: the linear map; a bias is the last column of the weights.
        like: an empty `[O, I]` with dtype and device of the weights.
        family: the kind of weights.
        hard: use the most probable weights in place of their means.

    Attributes:
        linear, family, hard: as above.
        precision, precision_mean: natural parameters `[O, I]`.
        prior_precision, prior_precision_mean: natural parameters of the prior.
        sites: contributions of the batches.

    Example:
        >>> layer = MessageLayer(DenseMap(bias=True), torch.empty(3, 5), GaussianWeights(1.0, 0.2))
        >>> layer(torch.rand(2, 4)).shape
        torch.Size([2, 3])
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
        """Natural parameters, detached."""
        return Natural(self.precision.detach(), self.precision_mean.detach())

    @property
    def prior(self) -> Natural:
        """Natural parameters of the prior."""
        return Natural(self.prior_precision, self.prior_precision_mean)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return means and variances `[O, I]` of the weights that predict."""
        if self.hard and isinstance(self.family, LevelWeights):
            return self.family.most_probable(self.natural)
        return self.family.moments(self.natural)

    def draw(self) -> Tensor:
        """Sample weights `[O, I]` with torch's generator; the most probable ones if the layer is `hard`."""
        if not self.hard or not isinstance(self.family, LevelWeights):
            return self.family.draw(self.natural)
        mean, variance = self.moments()
        return mean + variance.sqrt() * torch.randn_like(mean)

    def cavity(self, site: Natural | None) -> Natural:
        """Return the natural parameters without a site; precisions of Gaussian weights stay positive."""
        if site is None:
            return self.natural
        precision, precision_mean = (values - part for values, part in zip(self.natural, site, strict=True))
        least = 1e-3 * self.prior_precision
        if isinstance(self.family, LevelWeights):
            # levels have a prior precision of 0; theirs may be negative and the distribution is still proper
            least = torch.where(self.prior_precision > 0, least, -torch.inf)
        return Natural(torch.maximum(precision, least, out=precision), precision_mean)

    def fade(self, retained: float) -> None:
        """Multiply the contribution of all data by a factor in (0, 1]: prior + factor (natural - prior)."""
        with torch.no_grad():
            for values, prior in zip((self.precision, self.precision_mean), self.prior, strict=True):
                values.lerp_(prior, 1 - retained)

    def average_cavity(self, share: float) -> Natural:
        """Return the natural parameters without a share of the contribution of all data, for unknown sites."""
        added = (values - prior for values, prior in zip(self.natural, self.prior, strict=True))
        return self.cavity(Natural(*(share * values for values in added)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear.apply(x, self.moments()[0])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.sites.update(self.natural)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"{tuple(self.precision.shape)}, {self.linear}, {self.family}" + (", hard=True" if self.hard else "")


def linear_map_of(layer: nn.Linear | nn.Conv2d) -> LinearMap:
    """Return the linear map of a layer, whose padding is a number of zeros."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return DenseMap(bias)
    assert not isinstance(layer.padding, str)
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
    """Return an empty `[O, I]` for the weights of a layer and for its bias, if it has one."""
    columns = layer.weight[0].numel() + (layer.bias is not None)
    return layer.weight.new_empty(len(layer.weight), columns)
