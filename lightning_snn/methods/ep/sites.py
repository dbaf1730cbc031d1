"""What every batch has told a layer, so that it is not counted twice when the batch comes round again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.methods.ep.weights import Natural


class SiteMemory(nn.Module):
    """Sites of batches, by the key of the batch: the natural parameters that each added to a layer.

    The layer moves only when the optimizer steps. Until then the displacements that were asked for are pending; then
    they are settled: every site moves by its share of what the layer really moved, whatever learning rate, clipping,
    accumulation or averaging over processes made of it. Sites are part of the state dict; they are not buffers,
    which processes would overwrite with those of the first.
    """

    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._sites: dict[int, Natural] = {}
        self._sizes: dict[int, int] = {}
        self._pending: list[tuple[int, int, Natural]] = []
        self._before: Natural | None = None
        # follows the layer to its device, where loaded sites belong
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def samples(self) -> int:
        """How many samples the batches hold whose sites are kept."""
        return sum(self._sizes.values())

    def __contains__(self, key: int) -> bool:
        return key in self._sites

    def __len__(self) -> int:
        return len(self._sites)

    def site(self, key: int) -> Natural | None:
        """The site of a batch, None of one that never came."""
        return self._sites.get(key)

    def ask(self, now: Natural, displacements: list[tuple[int, int, Natural]]) -> None:
        """Note displacements `(key, samples, natural parameters)` that the next step of the optimizer should make."""
        if self._before is None:
            self._before = Natural(*(values.detach().clone() for values in now))
        self._pending += displacements

    def settle(self, now: Natural) -> None:
        """Move sites by what the layer has moved since displacements were asked for; nothing, if it has not."""
        before = self._before
        if before is None or all(torch.equal(after, earlier) for after, earlier in zip(now, before, strict=True)):
            return
        moved = Natural(*(after.detach() - earlier for after, earlier in zip(now, before, strict=True)))
        if len(self._pending) == 1:
            shares = [moved]  # to the last bit, so that the layer stays the sum of prior and sites
        else:
            shares = _shared_out(moved, [displacement for _, _, displacement in self._pending])
        for (key, size, _), share in zip(self._pending, shares, strict=True):
            old = self._sites.get(key)
            self._sites[key] = share if old is None else Natural(*(a + b for a, b in zip(old, share, strict=True)))
            self._sizes[key] = size
        self._pending, self._before = [], None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._sites:
            destination[prefix + "keys"] = torch.tensor(list(self._sites))
            destination[prefix + "sizes"] = torch.tensor(list(self._sizes.values()))
            for name in Natural._fields:
                destination[prefix + name] = torch.stack([getattr(site, name) for site in self._sites.values()])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._sites, self._sizes, self._pending, self._before = {}, {}, [], None
        if prefix + "keys" in state_dict:
            parts = [state_dict[prefix + name] for name in ("keys", "sizes", *Natural._fields)]
            for key, size, *natural in zip(parts[0].tolist(), parts[1].tolist(), *parts[2:], strict=True):
                self._sites[key], self._sizes[key] = (
                    Natural(*(values.to(self._place.device, copy=True) for values in natural)),
                    size,
                )

    def _apply(self, fn: Any, recurse: bool = True) -> SiteMemory:
        super()._apply(fn, recurse)
        self._sites = {key: Natural(*map(fn, site)) for key, site in self._sites.items()}
        self._pending = [(key, size, Natural(*map(fn, asked))) for key, size, asked in self._pending]
        self._before = None if self._before is None else Natural(*map(fn, self._before))
        return self


def _shared_out(moved: Natural, asked: list[Natural]) -> list[Natural]:
    """A move shared out among several displacements: along their sum by what each asked for, the rest evenly."""
    shares = []
    for step, parts in zip(moved, zip(*asked, strict=True), strict=True):
        total = torch.stack(parts).sum(0)
        fraction = (step * total).sum() / (total * total).sum().clamp(min=torch.finfo(total.dtype).tiny)
        rest = (step - fraction * total) / len(asked)
        shares.append([fraction * part + rest for part in parts])
    return [Natural(*share) for share in zip(*shares, strict=True)]
