"""Surrogate-gradient backpropagation through time, the standard baseline.

Computes the gradient of the loss through the unrolled network, with the derivative of each spike replaced by that of
its layer's surrogate. The forward pass is exact. The gradient is in general not that of any function, and
unbiased only if the surrogate is.

Cost: O(T) time and memory. With ``checkpoint=K``, memory T / K + K and one more forward pass: only the states between
pieces of K steps are kept, and a piece is computed again in the backward pass. The gradient is the same. With
``truncate=K`` it does not pass from one piece of K steps to the piece before, so it misses what an input causes more
than K steps later.

After Neftci, Mostafa & Zenke 2019; checkpointing after Chen et al. 2016 (arXiv 1604.06174), truncation after Williams &
Peng 1990. Not to be confused with rate-based backpropagation, whose memory does not grow with T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from lightning_snn.checks import check_integer
from lightning_snn.methods.base import Method, Step
from lightning_snn.nn.folding import run
from lightning_snn.nn.inputs import split_inputs
from lightning_snn.nn.layer_rules import refuse
from lightning_snn.nn.lengths import later_steps
from lightning_snn.nn.streaming import advance, streaming_refusals


class SurrogateGradient(Method):
    """Backpropagation through time with surrogate derivatives; the objective is the loss.

    Args:
        checkpoint: number of steps K of a piece that is computed again in the backward pass, at least 1. About the
            square root of T needs the least memory. None keeps what all steps need.
        truncate: number of steps after which the gradient is cut, a multiple of `checkpoint`, which it is by default.
            None cuts nothing.

    Raises:
        ValueError: if an argument is outside its range; from `prepare`, with one of them, if a layer mixes time steps
            and takes no state, or is batch normalization, whose statistics are those of a whole sequence.

    Example:
        >>> module = SpikingModule(network, SurrogateGradient(), num_classes=3)
        >>> step = module.method.training_step(module.network, x, y)
        >>> step.objective.backward()
    """

    citation = """@article{neftci2019surrogate,
  title = {Surrogate gradient learning in spiking neural networks},
  author = {Neftci, Emre O. and Mostafa, Hesham and Zenke, Friedemann},
  journal = {IEEE Signal Processing Magazine}, volume = {36}, number = {6}, pages = {51--63}, year = {2019}
}"""

    def __init__(self, checkpoint: int | None = None, truncate: int | None = None) -> None:
        super().__init__()
        for name, value in (("checkpoint", checkpoint), ("truncate", truncate)):
            if value is not None:
                check_integer(name, value)
        # truncation alone frees no memory, because the objective has one backward pass
        self.checkpoint = truncate if checkpoint is None else checkpoint
        self.truncate = truncate
        if truncate is not None and truncate % (self.checkpoint or 1):
            raise ValueError(
                f"Expected argument `truncate` to be a multiple of `checkpoint`, {checkpoint}, but got {truncate}"
            )

    def prepare(self, network: nn.Module) -> nn.Module:
        network = super().prepare(network)
        if self.checkpoint is not None:
            refuse(f"{type(self).__name__}(checkpoint={self.checkpoint})", streaming_refusals(network))
        return network

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        return self.step_on_loss(run(network, x) if self.checkpoint is None else self._in_pieces(network, x), y)

    def _in_pieces(self, network: nn.Module, x: Tensor) -> Tensor:
        assert self.checkpoint is not None
        state: Any = None
        outputs = []
        for index, piece in enumerate(split_inputs(x, self.checkpoint)):
            start = index * self.checkpoint
            if state is not None and self.truncate is not None and start % self.truncate == 0:
                state = tree_map(Tensor.detach, state)
            with later_steps(start):
                output, state = checkpoint(advance, network, piece, state, use_reentrant=False)
            outputs.append(output)
        return torch.cat(outputs)
