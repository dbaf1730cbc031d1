"""Architectures, as plain modules."""

from lightning_snn.networks.event_conv import EventConvNet
from lightning_snn.networks.mlp import MLP
from lightning_snn.networks.recurrent import RecurrentNet
from lightning_snn.networks.residual import ResidualConvNet, ResidualMLP
from lightning_snn.networks.resnet import ResNet, ResNet18, ResNet19
from lightning_snn.networks.sew_resnet import SEWResNet
from lightning_snn.networks.vgg import VGG

__all__ = [
    "MLP",
    "VGG",
    "EventConvNet",
    "RecurrentNet",
    "ResNet",
    "ResNet18",
    "ResNet19",
    "ResidualConvNet",
    "ResidualMLP",
    "SEWResNet",
]
