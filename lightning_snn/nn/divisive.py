"""Divisive normalization: inputs divided by their own root mean square so far."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.checks import check_positive
from lightning_snn.nn.stateful import StatefulLayer

# of the mean square; an input without events stays 0
_SMALLEST = 1e-4


class DivisiveNormalization(StatefulLayer):
    r"""Inputs of a sample divided by their root mean square over all cells and all steps until now.

    .. math::
        y_t = r \, x_t \, / \sqrt{\tfrac{1}{t} \sum_{s \le t} \overline{x_s^2} + 10^{-4}}

    where the bar is the mean over all dimensions of a sample but time. So a network receives inputs of the same size
    from a recording with few events as from one with many, whatever sensor, light and time step it was made with: its
    initial weights suit any density of events, and a dim recording looks like a bright one.

    A step depends on the present and the past of its own sample only. There are no batch statistics, nothing is learned
    or stored, and a stream of single steps gives the same result. The gradient treats the divisor as a constant.

    This is not layer normalization: no mean is subtracted, so cells without events stay 0. It is no remedy for hot
    pixels, which take part in the mean; clip counts for that (`max_count` of the data modules).

    Args:
        rms: root mean square r of the output, larger than 0.

    Raises:
        ValueError: if `rms` is not larger than 0.

    Shape:
        `[T*B, ...]` to the same shape.

    Source: divisive normalization, Carandini and Heeger, "Normalization as a canonical neural computation", Nature
    Reviews Neuroscience 13, 2012, with the cells and the past of a recording as normalization pool.

    Example:
        >>> few = torch.poisson(torch.full((5, 3, 2, 8, 8), 0.1))
        >>> [round(run(DivisiveNormalization(0.35), x).square().mean().sqrt().item(), 1) for x in (few, 100 * few)]
        [0.3, 0.3]
    """

    def __init__(self, rms: float = 0.35) -> None:
        super().__init__()
        check_positive("rms", rms)
        self.rms = rms

    def initial_state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return zeros, zeros

    def scan(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run a sequence `[T, B, ...]`.

        The state holds, per sample `[B]`, the sum of the mean squares of the past steps and their number.
        """
        with torch.no_grad():
            scales = []
            # step by step, because a reduction of all steps at once rounds differently from that of a single step
            for squares in x.detach().flatten(2).square().unbind(0):
                mean = squares.mean(1, dtype=torch.promote_types(x.dtype, torch.float32))
                total, steps = state if state is not None else self.initial_state(x[0])
                state = total + mean, steps + 1
                scales.append(self.rms * (state[0] / state[1] + _SMALLEST).rsqrt())
            scale = torch.stack(scales).to(x.dtype)
        assert state is not None
        return x * scale.view(*scale.shape, *(1,) * (x.dim() - 2)), state

    def step(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run one time step `[B, ...]`; the state is that of `scan`."""
        outputs, state = self.scan(x[None], state)
        return outputs[0], state

    def extra_repr(self) -> str:
        return f"rms={self.rms:g}"
