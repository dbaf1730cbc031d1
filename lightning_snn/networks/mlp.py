"""Fully connected spiking networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_snn.checks import check_integer
from lightning_snn.networks.initial_weights import draw_weights
from lightning_snn.networks.inputs import input_features
from lightning_snn.networks.neurons import NeuronFactory, make_neuron
from lightning_snn.nn.neurons import LIF


class MLP(nn.Sequential):
    """Linear layers with neurons between them; the last Linear is read out.

    Args:
        input_shape: number of inputs, or the shape of an input, which is flattened.
        num_classes: number of outputs.
        hidden: sizes of the hidden layers.
        neuron: makes the neurons of a layer: a class or function without required arguments, such as `AdaptiveLIF` or
            ``partial(LIF, beta=0.5)``.
        gain: weights before neurons start as N(0, gain^2 / fan-in), larger than 0, and all biases at 0. With 1.7 images
            and dense events keep each layer of `LIF` active at any depth; with PyTorch's weights the third layer is
            silent. The weights of the readout are those of PyTorch.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        `[T*B, *input_shape]` to `[T*B, num_classes]`.

    Example:
        >>> network = MLP(8, 3, hidden=(16,))
        >>> lightning_snn.run(network, torch.rand(5, 2, 8)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...] = 784,
        num_classes: int = 10,
        hidden: Sequence[int] = (256, 256),
        neuron: NeuronFactory = LIF,
        gain: float = 1.7,
    ) -> None:
        check_integer("num_classes", num_classes)
        features = input_features(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in hidden:
            check_integer("hidden", size)
            layers += [nn.Linear(features, size), make_neuron(neuron)]
            features = size
        draw_weights(layers, gain)
        readout = nn.Linear(features, num_classes)
        nn.init.zeros_(readout.bias)
        super().__init__(*layers, readout)
