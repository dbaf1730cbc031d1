"""Spike-element-wise residual networks: shortcuts carry spikes, and are joined after the neurons of a branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice
from lightning_snn.networks.inputs import check_frames
from lightning_snn.networks.neurons import NeuronFactory, make_neuron
from lightning_snn.networks.normalized import mean_readout, normalized_convolution
from lightning_snn.networks.resnet import residual_stages, stage_depths
from lightning_snn.nn.neurons import DetachedLIF
from lightning_snn.nn.spike_gate import SpikeGate


class SEWBlock(nn.Module):
    """Two normalized convolutions, each with neurons, whose spikes are joined with those of the shortcut.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
        neuron: makes the neurons of a layer, see `MLP`.
        join: "add" is the sum of the spikes of branch and shortcut, "and" and "iand" their products, see `SpikeGate`.

    The shortcut is the identity, or a normalized 1x1 convolution of that stride with neurons where channels or size
    change.

    Shape:
        `[T*B, inputs, H, W]` to `[T*B, outputs, H / stride, W / stride]`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        neuron: NeuronFactory = DetachedLIF,
        join: Literal["add", "and", "iand"] = "add",
    ) -> None:
        super().__init__()
        check_choice("join", join, ("add", "and", "iand"))
        self.branch = nn.Sequential(
            *normalized_convolution(inputs, outputs, stride=stride),
            make_neuron(neuron),
            *normalized_convolution(outputs, outputs),
            make_neuron(neuron),
        )
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Sequential(*(*normalized_convolution(inputs, outputs, 1), make_neuron(neuron)) * changes)
        self.stride = stride
        self.gate = None if join == "add" else SpikeGate(join)

    def forward(self, x: Tensor) -> Tensor:
        # as in `BasicBlock`, without a stride of the 1x1 convolution
        spikes, skipped = self.branch(x), self.shortcut(x[..., :: self.stride, :: self.stride])
        joined: Tensor = spikes + skipped if self.gate is None else self.gate(spikes, skipped)
        return joined


class SEWResNet(nn.Sequential):
    """A spike-element-wise residual network (after Fang et al. 2021, arXiv 2102.04159); by default SEW-ResNet-18.

    A convolution with neurons, stages of `SEWBlock`, and a mean readout. From the second stage on the first block of a
    stage has stride 2. Outputs of blocks that "add" are counts of spikes, up to one per branch that was passed. Weights
    start as torch draws them; normalization removes the scale of a convolution.

    Networks that "add" suit every rule that `ResNet` suits. Those that gate are refused by `RateBackprop`, because the
    rate of a product is not the product of the rates, and by `TimeToFirstSpike`.

    Args:
        input_shape: channels, height and width of a frame.
        num_classes: number of outputs.
        channels: channels of each stage; the first convolution has those of the first stage.
        blocks: blocks of each stage, or one number for all; (3, 4, 6, 3) makes a SEW-ResNet-34.
        join: how a block joins the spikes of branch and shortcut: "add", "and" or "iand", see `SEWBlock`.
        large_images: start with a 7x7 convolution of stride 2 and a max-pooling of stride 2, as for ImageNet; else
            with a 3x3 convolution.
        neuron: makes the neurons of a layer, see `MLP`; by default the LIF of Yu et al. 2024.

    Raises:
        ValueError: if an argument is outside its range, or `channels` and `blocks` differ in length.

    Shape:
        `[T*B, C, H, W]` to `[T*B, num_classes]`.

    Example:
        >>> network = SEWResNet((2, 16, 16), 11, channels=(8, 16), blocks=1, join="iand")
        >>> run(network, torch.rand(4, 3, 2, 16, 16)).shape
        torch.Size([4, 3, 11])
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: int | Sequence[int] = 2,
        join: Literal["add", "and", "iand"] = "add",
        large_images: bool = False,
        neuron: NeuronFactory = DetachedLIF,
    ) -> None:
        check_frames(input_shape, num_classes)
        check_choice("join", join, ("add", "and", "iand"))

        def block(inputs: int, outputs: int, stride: int) -> SEWBlock:
            return SEWBlock(inputs, outputs, stride, neuron, join)

        depths = stage_depths(channels, blocks)
        stem = normalized_convolution(input_shape[0], channels[0], *((7, 2) if large_images else ()))
        layers = [*stem, make_neuron(neuron), *([nn.MaxPool2d(3, 2, 1)] if large_images else ())]
        layers += residual_stages(block, channels, depths)
        super().__init__(*layers, *mean_readout(channels[-1], num_classes))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
