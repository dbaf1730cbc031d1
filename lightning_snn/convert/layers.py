"""Layers of torch.nn between neurons: all that take rows as independent of each other."""

from __future__ import annotations

from torch import nn

from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.nn.layer_rules import replacement_refusal
from lightning_snn.nn.row_checks import SEQUENCE_LAYERS

_OVER_ROWS = (nn.Softmax, nn.LogSoftmax, nn.Softmin)


def row_layer(layer: nn.Module) -> nn.Module:
    """Return a layer that computes each row of `[B, ...]` from that row, in evaluation mode.

    Raises:
        Unconvertible: if it mixes rows, or keeps a state.
    """
    if isinstance(layer, (*SEQUENCE_LAYERS, nn.RNNCellBase)):
        raise Unconvertible("its state over time is not converted: use `lightning_snn.nn.OverTime` or `PerStep`")
    if isinstance(layer, nn.Flatten) and not (layer.start_dim >= 1):
        raise Unconvertible(f"it flattens from dimension {layer.start_dim}, the rows: use nn.Flatten()")
    if isinstance(layer, nn.Unflatten) and layer.dim == 0:
        raise Unconvertible("it unflattens dimension 0, the rows")
    if isinstance(layer, _OVER_ROWS) and layer.dim in (0, None):
        raise Unconvertible("it normalizes over dimension 0, the rows: set dim=1")
    if (reason := replacement_refusal(layer)) is not None and "hooks" not in reason:
        raise Unconvertible(reason)
    return layer


_ON_LAST = (nn.Linear, nn.LayerNorm, nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU)
_ELEMENTWISE = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus)


def sequence_layer(layer: nn.Module) -> nn.Module:
    """Return the layer on rows `[T*B, ...]` for one that a network calls on `[T, B, ...]`.

    Raises:
        Unconvertible: if the layer mixes rows, or takes `[T, B, ...]` for something else.
    """
    if type(layer) is nn.Flatten and layer.start_dim >= 2:
        return nn.Flatten(layer.start_dim - 1, layer.end_dim if layer.end_dim < 0 else layer.end_dim - 1)
    if type(layer) in (*_ON_LAST, *_ELEMENTWISE):
        return row_layer(layer)
    raise Unconvertible(
        f"it receives [T, B, ...] and may take it for something else: use SpikingJelly's layer.{type(layer).__name__}, "
        "or put it in a layer.SeqToANNContainer"
    )
