"""Products of spikes, by which a shortcut and a branch gate each other."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightning_snn.checks import check_choice


class SpikeGate(nn.Module):
    """Product of the spikes of a branch and of a shortcut (after Fang et al. 2021, arXiv 2102.04159).

    Args:
        kind: "and" is ``branch * shortcut``, a spike where both spike; "iand" is ``(1 - branch) * shortcut``, a spike
            where only the shortcut spikes.

    Shape:
        two inputs `[T*B, ...]` of the same shape; the output has that shape, too.

    Raises:
        ValueError: if `kind` is neither "and" nor "iand".

    Example:
        >>> SpikeGate("iand")(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0]))
        tensor([0., 1., 0.])
    """

    def __init__(self, kind: Literal["and", "iand"]) -> None:
        super().__init__()
        check_choice("kind", kind, ("and", "iand"))
        self.kind = kind

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch * shortcut if self.kind == "and" else (1 - branch) * shortcut

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"
