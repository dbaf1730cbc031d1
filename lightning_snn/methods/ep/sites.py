"""Sites: the contribution of each batch to a layer, kept so that a batch is not counted twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.methods.ep.weights import Natural


class SiteMemory(nn.Module):
    """Sites of batches by key: the natural parameters that each batch has added to a layer.

    The layer changes only when the optimizer steps. Displacements that batches request are pending until then. `update`
    then changes every site by its share of the actual change, whatever learning rate, clipping, accumulation or
    averaging over processes made of the request. Sites are part of the state dict. They are not buffers, because
    processes would overwrite buffers with those of the first process.

    Sites may fade, see `fade`. A site is stored with the product of all factors so far, so that fading costs nothing.
    """

    _device: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._sites: dict[int, Natural] = {}
        self._sizes: dict[int, int] = {}
        self._scale = 1.0
        self._scales: dict[int, float] = {}
        self._pending: list[tuple[int, int, Natural]] = []
        self._before: Natural | None = None
        # follows the layer to its device, for sites that are loaded
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @property
    def samples(self) -> int:
        """Number of samples in the batches with a site."""
        return sum(self._sizes.values())

    @property
    def pending(self) -> bool:
        """True if displacements wait for a step of the optimizer."""
        return self._before is not None

    def __contains__(self, key: int) -> bool:
        return key in self._sites

    def __len__(self) -> int:
        return len(self._sites)

    def site(self, key: int) -> Natural | None:
        """Return the site of a batch, or None for an unknown batch."""
        site = self._sites.get(key)
        if site is None or (faded := self._scale / self._scales[key]) == 1:
            return site
        return Natural(*(faded * values for values in site))

    def fade(self, retained: float) -> None:
        """Multiply all sites by a factor in (0, 1].

        Raises:
            RuntimeError: if displacements are pending, because these are told from the change of the layer.
        """
        if self.pending:
            raise RuntimeError("Expected no pending displacements before sites fade. Call `update` after the step")
        self._scale *= retained

    def register(self, now: Natural, displacements: list[tuple[int, int, Natural]]) -> None:
        """Register the displacements that the next step of the optimizer should make.

        Args:
            now: natural parameters of the layer.
            displacements: key, number of samples and displacement for each batch.
        """
        if self._before is None:
            self._before = Natural(*(values.detach().clone() for values in now))
        self._pending += displacements

    def update(self, now: Natural) -> None:
        """Change sites by the change of the layer since displacements were registered; none if it did not change.

        Args:
            now: natural parameters of the layer.
        """
        before = self._before
        if before is None or all(torch.equal(after, earlier) for after, earlier in zip(now, before, strict=True)):
            return
        change = Natural(
            *(torch.sub(after.detach(), earlier, out=earlier) for after, earlier in zip(now, before, strict=True))
        )
        if len(self._pending) == 1:
            shares = [change]  # bitwise, so that the layer stays the sum of prior and sites
        else:
            shares = _shares(change, [displacement for _, _, displacement in self._pending])
        for (key, size, _), share in zip(self._pending, shares, strict=True):
            old = self.site(key)
            self._sites[key] = share if old is None else Natural(*(a.add_(b) for a, b in zip(share, old, strict=True)))
            self._sizes[key], self._scales[key] = size, self._scale
        self._pending, self._before = [], None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._sites:
            destination[prefix + "keys"] = torch.tensor(list(self._sites))
            destination[prefix + "sizes"] = torch.tensor(list(self._sizes.values()))
            destination[prefix + "scales"] = torch.tensor([*self._scales.values(), self._scale], dtype=torch.float64)
            for name in Natural._fields:
                destination[prefix + name] = torch.stack([getattr(site, name) for site in self._sites.values()])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._sites, self._sizes, self._pending, self._before = {}, {}, [], None
        self._scale, self._scales = 1.0, {}
        if prefix + "keys" in state_dict:
            parts = [state_dict[prefix + name] for name in ("keys", "sizes", *Natural._fields)]
            for key, size, *natural in zip(parts[0].tolist(), parts[1].tolist(), *parts[2:], strict=True):
                self._sites[key], self._sizes[key] = (
                    Natural(*(values.to(self._device.device, copy=True) for values in natural)),
                    size,
                )
            scales = state_dict.get(prefix + "scales")  # older checkpoints have none
            *each, self._scale = [1.0] * (len(self._sites) + 1) if scales is None else scales.tolist()
            self._scales = dict(zip(self._sites, each, strict=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SiteMemory:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._sites = {key: Natural(*map(fn, site)) for key, site in self._sites.items()}
        self._pending = [(key, size, Natural(*map(fn, requested))) for key, size, requested in self._pending]
        self._before = None if self._before is None else Natural(*map(fn, self._before))
        return self


def _shares(change: Natural, requested: list[Natural]) -> list[Natural]:
    """Split a change among displacements: in proportion to each along their sum, and the rest evenly."""
    shares = []
    for step, parts in zip(change, zip(*requested, strict=True), strict=True):
        total = torch.stack(parts).sum(0)
        fraction = (step * total).sum() / (total * total).sum().clamp(min=torch.finfo(total.dtype).tiny)
        rest = (step - fraction * total) / len(requested)
        shares.append([fraction * part + rest for part in parts])
    return [Natural(*share) for share in zip(*shares, strict=True)]
