"""Deep residual networks without normalization: shortcuts carry the input current of the membranes past the spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from lightning_snn.checks import check_integer
from lightning_snn.networks.initial_weights import draw_weights
from lightning_snn.networks.inputs import input_features
from lightning_snn.networks.neurons import NeuronOrSignFactory, make_neuron
from lightning_snn.nn.neurons import LIF
from lightning_snn.nn.residual import MembraneResidual
from lightning_snn.nn.sign import Sign


class ResidualMLP(nn.Sequential):
    """A fully connected network of any depth: each layer of neurons adds a current to one shared stream.

    The stream starts as a Linear of the input, each block adds ``Linear(neurons(stream))``, and the last neurons are
    read out by a Linear: `depth` layers of neurons, ``depth + 1`` of weights.

    Args:
        input_shape: number of inputs, or the shape of an input, which is flattened.
        num_classes: number of outputs.
        depth: layers of neurons.
        width: neurons of a layer.
        neuron: makes the neurons of a layer, see `MLP`; by default `Sign`, a binary network with activations -1 and 1.
        gain: weights start as N(0, gain^2 / fan-in), larger than 0; biases at 0.

    Shape:
        `[T*B, *input_shape]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...] = 784,
        num_classes: int = 10,
        depth: int = 20,
        width: int = 128,
        neuron: NeuronOrSignFactory = Sign,
        gain: float = 1.0,
    ) -> None:
        for name, value in (("num_classes", num_classes), ("depth", depth), ("width", width)):
            check_integer(name, value)
        features = input_features(input_shape)
        blocks = [
            MembraneResidual(nn.Sequential(make_neuron(neuron), nn.Linear(width, width))) for _ in range(depth - 1)
        ]
        super().__init__(
            nn.Flatten(),
            nn.Linear(features, width),
            *blocks,
            make_neuron(neuron),
            nn.Linear(width, num_classes),
        )
        draw_weights(self.modules(), gain)


class ResidualConvNet(nn.Sequential):
    """A residual convolutional network: in each block neurons and a 3x3 convolution add a current to the stream.

    From the second stage on the first block of a stage halves height and width: its convolution has stride 2, and its
    shortcut averages 2x2 positions and changes the channels by a 1x1 convolution. A Linear reads out the stream itself
    at all positions, mean and variance within `posterior_noise`.

    Args:
        input_shape: channels, height and width of a frame; height and width divisible by ``stem_stride * 2^(stages -
            1)``.
        num_classes: number of outputs.
        channels: channels of each stage.
        blocks: blocks of a stage.
        stem_stride: stride of the first convolution; 2 makes everything after it four times cheaper.
        neuron: makes the neurons of a layer, see `MLP`; `Sign` makes a binary network with activations -1 and 1.
        gain: weights start as N(0, gain^2 / fan-in), larger than 0; biases at 0.
        batch_norm: normalize after every convolution, for comparison; `SpikingBayes` refuses it.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        `[T*B, C, H, W]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 2,
        stem_stride: int = 1,
        neuron: NeuronOrSignFactory = LIF,
        gain: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        check_integer("num_classes", num_classes)
        check_integer("blocks", blocks)
        check_integer("stem_stride", stem_stride)
        if not channels:
            raise ValueError(f"Expected argument `channels` to hold at least one integer, but got {channels!r}")
        size, *plane = input_shape
        factor = stem_stride * 2 ** (len(channels) - 1)
        if any(side % factor for side in plane):
            raise ValueError(
                f"Expected argument `input_shape` to have height and width divisible by {factor}, but got {input_shape}"
            )

        def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
            return [layer, nn.BatchNorm2d(outputs)] if batch_norm else [layer]

        layers: list[nn.Module] = []
        for stage, out in enumerate(channels):
            check_integer("channels", out)
            if stage == 0:
                layers += convolution(size, out, 3, stem_stride)
                size = out
            for block in range(blocks):
                halves = stage > 0 and block == 0
                shortcut: list[nn.Module] = [nn.AvgPool2d(2)] if halves else []
                if size != out:
                    shortcut += convolution(size, out, 1)
                branch = [make_neuron(neuron), *convolution(size, out, 3, 2 if halves else 1)]
                layers.append(MembraneResidual(nn.Sequential(*branch), nn.Sequential(*shortcut) if shortcut else None))
                size = out
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(size * math.prod(side // factor for side in plane), num_classes),
        )
        draw_weights(self.modules(), gain)
        # convolutions run a quarter faster on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
