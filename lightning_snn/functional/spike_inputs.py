r"""Products of a dense layer with sparse spikes, from lists of the spikes in place of matrix products.

With :math:`S_n` the inputs that spike in sample n and :math:`R_i` the samples in which input i spikes,

.. math:: u_n = \sum_{i \in S_n} W_{:i}, \qquad C_{:i} = \sum_{n \in R_i} g_n .

Both are sums of rows that `torch.nn.functional.embedding_bag` reads one after the other. They equal the matrix products
up to the order of the sums. On a CPU they take less time as long as few inputs spike: with 13 % of spikes and 128
outputs a quarter of that of the product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.functional.linear_maps import DenseMap, KnownInputs, LinearMap

# above this share of spikes, or below these sizes, lists take as long as matrix products
_LARGEST_SHARE = 0.2
_FEWEST_OUTPUTS, _FEWEST_INPUTS = 64, 2**14


class SpikeLists(NamedTuple):
    """Spikes of a batch `[M, N]`, by sample and by input.

    Attributes:
        inputs: indices of the inputs that spike, sample by sample, int32 `[K]`.
        sample_starts: position of each sample's first spike in `inputs`, int32 `[M]`.
        samples: indices of the samples in which an input spikes, input by input, int32 `[K]`.
        input_starts: position of each input's first spike in `samples`, int32 `[N]`.
    """

    inputs: Tensor
    sample_starts: Tensor
    samples: Tensor
    input_starts: Tensor


def spike_lists(x: Tensor, largest_share: float = 1.0) -> SpikeLists | None:
    """Return the lists of spikes of a batch; None if values are not 0 or 1, or more than a share of them are not 0.

    Args:
        x: inputs `[M, N]` on the CPU.
        largest_share: largest share of spikes for which lists are made, from 0 to 1.

    Example:
        >>> lists = spike_lists(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
        >>> lists.inputs.tolist(), lists.sample_starts.tolist()
        ([1, 2, 2], [0, 2])
        >>> lists.samples.tolist(), lists.input_starts.tolist()
        ([0, 0, 1], [0, 0, 1])
        >>> spike_lists(torch.tensor([[0.5]])) is None
        True
    """
    spikes = x.bool().numpy()
    flat = np.flatnonzero(spikes)
    if len(flat) > largest_share * x.numel() or not (x.numpy().reshape(-1)[flat] == 1).all():
        return None
    # a copy of bytes by columns is slow in PyTorch, one of floats is not
    by_input = x.T.contiguous().bool().numpy()
    return SpikeLists(*_rows(flat, *spikes.shape), *_rows(np.flatnonzero(by_input), *by_input.shape))


def _rows(flat: np.ndarray[Any, Any], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the columns of flat positions in ascending order, and the place of the first of each row."""
    first = np.arange(rows) * columns
    starts = np.searchsorted(flat, first)
    flat = flat - np.repeat(first, np.diff(starts, append=len(flat)))
    return torch.from_numpy(flat.astype(np.int32)), torch.from_numpy(starts.astype(np.int32))


class SpikeInputs(KnownInputs):
    """Known inputs of a dense layer that are spikes; see the module. Gradients are not computed.

    Args:
        linear: the linear map.
        x: the spikes `[M, N]`, on the CPU.
        lists: of `x`.

    Example:
        >>> x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
        >>> linear = SpikeInputs(DenseMap(bias=False), x, spike_lists(x))
        >>> linear.apply(x, torch.tensor([[1.0, 2.0, 3.0]])).T
        tensor([[5., 3.]])
    """

    def __init__(self, linear: DenseMap, x: Tensor, lists: SpikeLists) -> None:
        super().__init__(linear, x)
        self._square = x
        self._bias, self._lists = linear.bias, lists
        if linear.bias:  # an input that spikes in every sample
            every = torch.arange(len(x), dtype=torch.int32)
            self._lists = lists._replace(
                samples=torch.cat([lists.samples, every]),
                input_starts=torch.cat([lists.input_starts, every.new_tensor([len(lists.samples)])]),
            )

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``W x``, `[M, O]`; see `LinearMap`."""
        if x is not self.x or constant != 1:
            return super().apply(x, weight, constant)
        lists, table = self._lists, weight.T.contiguous()
        sums = F.embedding_bag(lists.inputs, table, lists.sample_starts, mode="sum")
        return sums.add_(table[-1]) if self._bias else sums

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``g^T x``, `[O, I]`; see `LinearMap`."""
        if x is not self.x or constant != 1:
            return super().correlate(x, g, constant)
        lists = self._lists
        return F.embedding_bag(lists.samples, g.contiguous(), lists.input_starts, mode="sum").T.contiguous()

    def effective_inputs(self, x: Tensor, outputs: int) -> Tensor:
        """Return the number of spikes of each sample, a bias included, `[M, 1]`; see `LinearMap`."""
        if x is not self.x:
            return super().effective_inputs(x, outputs)
        if self._effective_inputs is None:
            starts = self._lists.sample_starts
            lengths = torch.diff(starts, append=starts.new_tensor([len(self._lists.inputs)]))
            self._effective_inputs = (lengths + self._bias).clamp_(min=1).to(x.dtype)[:, None]
        return self._effective_inputs


def known_inputs(linear: LinearMap, x: Tensor, outputs: int) -> KnownInputs:
    """Return the linear map for inputs of which only products are needed: by lists of spikes where these are faster.

    They are for the inputs of a dense layer with at least 64 outputs on a CPU, in float32, if a batch has at least
    16,384 values, all 0 or 1, and at most a fifth of them are 1. The lists take two int32 for each spike.

    Args:
        linear: the linear map.
        x: inputs `[M, ...]`.
        outputs: O.

    Example:
        >>> x = (torch.rand(64, 400) < 0.1).float()
        >>> type(known_inputs(DenseMap(), x, outputs=100)).__name__
        'SpikeInputs'
        >>> type(known_inputs(DenseMap(), torch.rand(64, 400), outputs=100)).__name__
        'KnownInputs'
    """
    fits = x.dim() == 2 and x.numel() >= _FEWEST_INPUTS and outputs >= _FEWEST_OUTPUTS
    if isinstance(linear, DenseMap) and fits and x.device.type == "cpu" and x.dtype == torch.float32:
        lists = spike_lists(x, _LARGEST_SHARE)
        if lists is not None:
            return SpikeInputs(linear, x, lists)
    return KnownInputs(linear, x)
