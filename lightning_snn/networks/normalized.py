"""Layers that the batch-normalized networks of the spiking literature share."""

from __future__ import annotations

from torch import nn


def normalized_convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps height and width at stride 1, and its normalization, which replaces the bias."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def mean_readout(features: int, num_classes: int) -> list[nn.Module]:
    """Return the average over all positions, and a Linear that reads it out."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes)]
