"""Residual networks that normalize: spikes skip two convolutions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_integer
from lightning_snn.networks.inputs import check_frames
from lightning_snn.networks.neurons import NeuronFactory, make_neuron
from lightning_snn.networks.normalized import mean_readout, normalized_convolution
from lightning_snn.nn.neurons import DetachedLIF


class BasicBlock(nn.Module):
    """Two normalized convolutions around neurons, added to the block's input, and neurons after the sum.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
        neuron: makes the neurons of a layer, see `MLP`.

    The shortcut is the identity, or a normalized 1x1 convolution of that stride where channels or size change.

    Shape:
        `[T*B, inputs, H, W]` to `[T*B, outputs, H / stride, W / stride]`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, neuron: NeuronFactory = DetachedLIF) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *normalized_convolution(inputs, outputs, stride=stride),
            make_neuron(neuron),
            *normalized_convolution(outputs, outputs),
        )
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Sequential(*normalized_convolution(inputs, outputs, 1) if changes else ())
        self.stride = stride
        self.neurons = make_neuron(neuron)

    def forward(self, x: Tensor) -> Tensor:
        # not by a stride of the 1x1 convolution, whose backward pass writes out of bounds on CPUs where fewer than 8
        # channels lie last in memory (oneDNN issue 6035)
        skipped = x[..., :: self.stride, :: self.stride]
        spikes: Tensor = self.neurons(self.branch(x) + self.shortcut(skipped))
        return spikes


def stage_depths(channels: Sequence[int], blocks: int | Sequence[int]) -> list[int]:
    """Return the number of blocks of each stage.

    Args:
        channels: channels of each stage.
        blocks: blocks of each stage, or one number for all.

    Raises:
        ValueError: if an argument is outside its range, or `channels` and `blocks` differ in length.
    """
    depths = [blocks] * len(channels) if isinstance(blocks, int) else list(blocks)
    if not channels or len(depths) != len(channels):
        raise ValueError(
            f"Expected arguments `channels` and `blocks` to hold one integer for each stage, but got "
            f"{list(channels)} and {blocks}"
        )
    for outputs, depth in zip(channels, depths, strict=True):
        check_integer("channels", outputs)
        check_integer("blocks", depth)
    return depths


def residual_stages(
    block: Callable[[int, int, int], nn.Module], channels: Sequence[int], depths: Sequence[int]
) -> list[nn.Module]:
    """Return the blocks of all stages; from the second stage on the first one has stride 2.

    Args:
        block: makes a block from the channels of its input and output, and its stride.
        channels: channels of each stage; the input of the first stage has as many.
        depths: blocks of each stage.
    """
    made, size = [], channels[0]
    for stage, (outputs, depth) in enumerate(zip(channels, depths, strict=True)):
        for number in range(depth):
            made.append(block(size, outputs, 2 if stage > 0 and number == 0 else 1))
            size = outputs
    return made


class ResNet(nn.Sequential):
    """A residual network for small images: a 3x3 convolution with neurons, stages of `BasicBlock`, a mean readout.

    From the second stage on the first block of a stage has stride 2. All positions of the last stage are averaged and
    read out by a Linear. Weights start as torch draws them; normalization removes the scale of a convolution.
    (`ResidualConvNet` is a residual network without normalization.)

    Args:
        input_shape: channels, height and width of a frame.
        num_classes: number of outputs.
        channels: channels of each stage; the first convolution has those of the first stage.
        blocks: blocks of each stage, or one number for all.
        hidden: neurons of a fully connected, normalized layer before the readout; None leaves it out.
        neuron: makes the neurons of a layer, see `MLP`; by default the LIF of Yu et al. 2024.

    Raises:
        ValueError: if an argument is outside its range, or `channels` and `blocks` differ in length.

    Shape:
        `[T*B, C, H, W]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int | Sequence[int] = 1,
        hidden: int | None = None,
        neuron: NeuronFactory = DetachedLIF,
    ) -> None:
        check_frames(input_shape, num_classes)
        depths = stage_depths(channels, blocks)
        layers = [*normalized_convolution(input_shape[0], channels[0]), make_neuron(neuron)]
        layers += residual_stages(partial(BasicBlock, neuron=neuron), channels, depths)
        size = channels[-1]
        *average, readout = mean_readout(size, num_classes)
        if hidden is not None:
            check_integer("hidden", hidden)
            # without normalization none of them would fire at the start
            average += [nn.Linear(size, hidden, bias=False), nn.BatchNorm1d(hidden), make_neuron(neuron)]
            readout = nn.Linear(hidden, num_classes)
        super().__init__(*layers, *average, readout)
        # a step of training is an eighth faster on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ResNet18(ResNet):
    """ResNet-18 for small images: four stages of two blocks, with 64 to 512 channels. Arguments as of `ResNet`."""

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        neuron: NeuronFactory = DetachedLIF,
    ) -> None:
        super().__init__(input_shape, num_classes, (64, 128, 256, 512), 2, neuron=neuron)


class ResNet19(ResNet):
    """ResNet-19 (after Zheng et al. 2021, arXiv 2011.05280): three wide stages and 256 neurons before the readout.

    Arguments as of `ResNet`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        neuron: NeuronFactory = DetachedLIF,
    ) -> None:
        super().__init__(input_shape, num_classes, (128, 256, 512), (3, 3, 2), 256, neuron)
