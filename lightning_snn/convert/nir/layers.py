"""Layers without spikes as nodes of NIR: weights, pooling, flattening, delays, constant factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from lightning_snn.convert.nir.metadata import storable
from lightning_snn.convert.nir.neurons import NEURON_RULES, Target
from lightning_snn.convert.nir.package import KEY, import_nir
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.functional.quantization import integer_weights, quantize_weight
from lightning_snn.nn.conventions import conventions_of, mixes_steps
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.layer_rules import LayerRules
from lightning_snn.nn.residual import GaussianNoise
from lightning_snn.nn.scale import Scale


class WeightQuantization(Protocol):
    """Constraints on the weights of linear and convolutional layers, such as `callbacks.HardwareConstraints`."""

    @property
    def weight_bits(self) -> int | None:
        """Bits of quantized weights; None leaves them continuous."""

    @property
    def weight_percentile(self) -> float:
        """Percentage of the weights within their range."""

    @property
    def weight_ranges(self) -> Any:
        """Ranges of weights: "layer" for one per layer, or "channel" for one per output channel."""


def linear_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of a linear layer: Linear, or Affine with a bias."""
    assert isinstance(layer, nn.Linear)
    nir = import_nir()
    if len(shape) != 1:
        raise Unconvertible(
            f"NIR multiplies a matrix with an input [N], but the input is {list(shape)}: flatten it before the layer"
        )
    weight = _array(layer.weight, target)
    return nir.Linear(weight=weight) if layer.bias is None else nir.Affine(weight, _array(layer.bias, target))


def convolution_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of a convolution with zero padding."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    nir = import_nir()
    if layer.padding_mode != "zeros":
        raise Unconvertible(f"NIR pads by zeros alone, and its padding_mode is {layer.padding_mode!r}")
    flat = isinstance(layer, nn.Conv1d)
    if len(shape) != layer.weight.dim() - 1:
        raise Unconvertible(f"its input {list(shape)} has no channels and positions")
    weight = _array(layer.weight, target)
    bias = np.zeros(len(weight), weight.dtype) if layer.bias is None else _array(layer.bias, target)
    geometry = {
        "stride": layer.stride[0] if flat else tuple(layer.stride),
        "padding": layer.padding if isinstance(layer.padding, str) else _geometry(layer.padding, flat),
        "dilation": layer.dilation[0] if flat else tuple(layer.dilation),
        "groups": layer.groups,
    }
    # without a shape, because nir 1.0.8 computes those of groups and of kernels that are not square wrongly
    node = (nir.Conv1d if flat else nir.Conv2d)(input_shape=None, weight=weight, bias=bias, **geometry)
    node.input_shape = int(shape[1]) if flat else tuple(int(side) for side in shape[1:])
    if layer.bias is None:
        node.metadata = {KEY: {"bias": False}}
    return node


def pooling_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of an average pool, AvgPool2d, or of one with the divisor 1, SumPool2d."""
    assert isinstance(layer, nn.AvgPool2d)
    nir = import_nir()
    kernel, stride, padding = (np.array(_pair(each)) for each in (layer.kernel_size, layer.stride, layer.padding))
    if layer.ceil_mode:
        raise Unconvertible("NIR has no ceil_mode=True: pad the input, or choose a size that its kernel divides")
    if not layer.count_include_pad and padding.any() and layer.divisor_override is None:
        raise Unconvertible("NIR averages over padding, too: count_include_pad=True")
    if layer.divisor_override not in (None, 1, int(kernel.prod())):
        raise Unconvertible("NIR divides by the size of the kernel or by 1, SumPool2d: follow it by a Scale")
    kind = nir.SumPool2d if layer.divisor_override == 1 else nir.AvgPool2d
    return kind(kernel_size=kernel, stride=stride, padding=padding)


def flatten_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of a flattening; NIR counts dimensions without the batch."""
    assert isinstance(layer, nn.Flatten)
    dimensions = len(shape) + 1
    start, end = (each + dimensions if each < 0 else each for each in (layer.start_dim, layer.end_dim))
    if start < 1:
        raise Unconvertible("it mixes samples and time steps: start_dim=1")
    last = -1 if end == dimensions - 1 else end - 1
    return import_nir().Flatten(input_type={"input": np.array(shape)}, start_dim=start - 1, end_dim=last)


def delay_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of a single delay."""
    assert isinstance(layer, SynapticDelays)
    if len(layer.delays) != 1:
        raise Unconvertible(
            "NIR has no concatenation of channels: add the outputs of one SynapticDelays((d,)) and one Linear per delay"
        )
    return import_nir().Delay(delay=np.full(shape, layer.delays[0] * target.dt))


def scale_node(layer: nn.Module, shape: Sequence[int], target: Target) -> Any:
    """Return the node of constant factors."""
    assert isinstance(layer, Scale)
    return import_nir().Scale(scale=np.array(np.broadcast_to(_array(layer.factor, target), shape)))


def no_node(layer: nn.Module, shape: Sequence[int], target: Target) -> None:
    """Return None for a layer that is the identity in a deterministic run."""


NODE_RULES: LayerRules[Any] = LayerRules(unknown="NIR has no node for it")
for _kinds, _rule in (
    ((nn.Linear,), linear_node),
    ((nn.Conv1d, nn.Conv2d), convolution_node),
    ((nn.AvgPool2d,), pooling_node),
    ((nn.Flatten,), flatten_node),
    ((SynapticDelays,), delay_node),
    ((Scale,), scale_node),
    ((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, GaussianNoise), no_node),
):
    for _kind in _kinds:
        NODE_RULES.register(_kind, _rule)

_NORMALIZATION = (
    "NIR has no normalization: merge it into the layer before by `torch.nn.utils.fusion.fuse_conv_bn_eval` or "
    "`fuse_linear_bn_eval`"
)
# the beginning of the qualified name of a type, and what to do
_KNOWN_REASONS = {
    "torch.nn.modules.batchnorm.": _NORMALIZATION,
    "torch.nn.modules.activation.": "NIR has no node for it: neurons are the nonlinear nodes",
    "torch.nn.modules.pooling.": "NIR has no node for it: use AvgPool2d",
    "lightning_snn.methods.bayes.": "its weights have a posterior: export `method.posterior_mean(network)` or "
    "`method.posterior_sample(network)`",
    "lightning_snn.methods.ttfs.": "its neurons spike once, at a continuous time, which no node of NIR does: export "
    "neurons with membrane potentials, trained by another method",
    "lightning_snn.methods.ep.": "it passes messages, which no node of NIR does",
    "lightning_snn.nn.divisive.": "NIR has no normalization: networks leave it out with input_rms=None",
}


def node_rule(layer: nn.Module) -> Any:
    """Return the function that makes the node of a layer, None if there is none."""
    return NODE_RULES.find(layer) or NEURON_RULES.find(layer)


def refusal_reason(layer: nn.Module) -> str | None:
    """Return why a layer has no node, None if it has one."""
    if type(layer).__module__.startswith("lightning_snn.methods."):
        return _known_reason(layer)
    if node_rule(layer) is not None:
        return None
    if conventions_of(layer) is not None or mixes_steps(layer):
        package = type(layer).__module__.partition(".")[0]
        return f"it is a neuron of {package}: call `lightning_snn.convert.from_{package}(network)` first"
    return _known_reason(layer)


def _known_reason(layer: nn.Module) -> str:
    for base in type(layer).__mro__:
        for beginning, reason in _KNOWN_REASONS.items():
            if f"{base.__module__}.".startswith(beginning):
                return reason
    return (NEURON_RULES if hasattr(layer, "firing_threshold") else NODE_RULES).reason(layer)


def quantize_node(node: Any, layer: nn.Module, quantization: WeightQuantization, target: Target) -> None:
    """Replace the weights of a node by quantized ones, and store their integers in its metadata.

    The metadata are ``codes``, ``scale`` and ``offset`` with ``weight = offset + scale * codes``, and ``bits``.

    Args:
        node: the node, which is changed.
        layer: the layer with the weights.
        quantization: its bits and ranges.
        target: see `Target`.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or quantization.weight_bits is None:
        return
    dimension = 0 if quantization.weight_ranges == "channel" else None
    arguments = layer.weight.detach(), quantization.weight_bits, quantization.weight_percentile, dimension
    node.weight = _array(quantize_weight(*arguments), target)
    codes, scale, offset = (storable(each) for each in integer_weights(*arguments))
    notes = {"codes": codes, "scale": scale, "offset": offset, "bits": quantization.weight_bits}
    node.metadata = {KEY: {**node.metadata.get(KEY, {}), **notes}}


def _array(values: Tensor, target: Target) -> np.ndarray:
    wide = values.detach().cpu()
    return np.ascontiguousarray((wide.double() if target.dtype == np.float64 else wide.float()).numpy())


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _geometry(values: Sequence[int], flat: bool) -> Any:
    return values[0] if flat else tuple(values)
