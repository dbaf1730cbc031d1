"""Linear maps in three operations: against explicit matrices and unfolded patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.functional.linear_maps import ConvolutionMap, DenseMap, LinearMap

GEOMETRIES = [
    {"kernel_size": (3, 3)},
    {"kernel_size": (3, 2), "stride": (2, 1)},
    {"kernel_size": (3, 3), "padding": (1, 2)},
    {"kernel_size": (2, 3), "dilation": (2, 1), "padding": (1, 0)},
    {"kernel_size": (3, 3), "groups": 2},
    {"kernel_size": (2, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 2), "groups": 2},
]


def patches(x: Tensor, linear: ConvolutionMap, constant: float) -> Tensor:
    """Inputs of every group and position, `[M, groups, positions, I]`, that of the bias last."""
    columns = F.unfold(x, linear.kernel_size, linear.dilation, linear.padding, linear.stride)
    columns = columns.reshape(len(x), linear.groups, -1, columns.shape[-1]).transpose(2, 3)
    if linear.bias:
        columns = torch.cat([columns, torch.full_like(columns[..., :1], constant)], -1)
    return columns


def weights_of_groups(weight: Tensor, linear: ConvolutionMap) -> Tensor:
    return weight.reshape(linear.groups, -1, weight.shape[1])


def convolution(geometry: dict[str, object], bias: bool) -> tuple[ConvolutionMap, Tensor, Tensor]:
    linear = ConvolutionMap(4, bias=bias, **geometry)
    inputs = 4 // linear.groups * linear.kernel_size[0] * linear.kernel_size[1] + bias
    x, weight = torch.randn(3, 4, 7, 8, dtype=torch.double), torch.randn(6, inputs, dtype=torch.double)
    return linear, x, weight


@pytest.mark.parametrize("constant", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution_is_the_dense_map_of_its_patches(geometry, bias, constant):
    linear, x, weight = convolution(geometry, bias)
    columns, kernels = patches(x, linear, constant), weights_of_groups(weight, linear)
    applied = linear.apply(x, weight, constant)
    torch.testing.assert_close(applied, torch.einsum("mgpi,goi->mgop", columns, kernels).reshape(applied.shape))

    g = torch.randn_like(applied)
    of_groups = g.reshape(len(x), linear.groups, -1, columns.shape[2])
    torch.testing.assert_close(
        linear.correlate(x, g, constant), torch.einsum("mgop,mgpi->goi", of_groups, columns).reshape(weight.shape)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_effective_inputs_of_a_convolution_are_those_of_its_patches(geometry, bias):
    linear, x, weight = convolution(geometry, bias)
    squared = patches(x, linear, 1.0).square()  # [M, groups, positions, I]
    expected = squared.sum(-1).square() / squared.square().sum(-1)
    of_outputs = linear.effective_inputs(x, len(weight)).expand_as(linear.apply(x, weight))
    torch.testing.assert_close(
        of_outputs.flatten(2), expected.repeat_interleave(len(weight) // linear.groups, 1), rtol=1e-12, atol=0
    )


def test_effective_inputs_are_one_or_all_or_between():
    x = torch.tensor([[0.0, 3.0, 0.0, 0.0], [2.0, -2.0, 2.0, 2.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4])
    assert DenseMap(bias=False).effective_inputs(x, 2)[:, 0].tolist() == [1, 4, 2, 1]
    assert DenseMap(bias=True).effective_inputs(x, 2)[2:, 0].tolist() == [3, 1]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_transpose_of_a_convolution_folds_its_patches(geometry, bias):
    linear, x, weight = convolution(geometry, bias)
    g = torch.randn_like(linear.apply(x, weight))
    kernels = weights_of_groups(weight[:, :-1] if bias else weight, linear)
    spread = torch.einsum("mgop,goi->mgip", g.reshape(len(x), linear.groups, -1, g[0, 0].numel()), kernels)
    folded = F.fold(
        spread.flatten(1, 2), x.shape[2:], linear.kernel_size, linear.dilation, linear.padding, linear.stride
    )
    torch.testing.assert_close(linear.transpose(g, weight, x.shape), folded)


@pytest.mark.parametrize("constant", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
def test_dense_map_is_a_matrix_product_with_a_column_of_constants(bias, constant):
    linear = DenseMap(bias)
    x, g = torch.randn(5, 3, dtype=torch.double), torch.randn(5, 4, dtype=torch.double)
    weight = torch.randn(4, 3 + bias, dtype=torch.double)
    columns = torch.cat([x, torch.full((5, 1), constant, dtype=torch.double)], 1) if bias else x
    torch.testing.assert_close(linear.apply(x, weight, constant), columns @ weight.T)
    torch.testing.assert_close(linear.correlate(x, g, constant), g.T @ columns)
    torch.testing.assert_close(linear.transpose(g, weight, x.shape), g @ weight[:, :3])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("geometry", [None, *GEOMETRIES])
def test_the_three_operations_are_one_bilinear_form(geometry, bias):
    if geometry is None:
        linear: LinearMap = DenseMap(bias)
        x, weight = torch.randn(3, 5, dtype=torch.double), torch.randn(4, 5 + bias, dtype=torch.double)
    else:
        linear, x, weight = convolution(geometry, bias)
    applied = linear.apply(x, weight, constant=0.0)
    g = torch.randn_like(applied)
    form = (g * applied).sum()
    torch.testing.assert_close((linear.correlate(x, g, constant=0.0) * weight).sum(), form)
    torch.testing.assert_close((linear.transpose(g, weight, x.shape) * x).sum(), form)


def test_convolution_correlates_without_storing_patches(memory):
    linear = ConvolutionMap(8, (5, 5), padding=(2, 2))
    x, g = torch.randn(16, 8, 24, 24), torch.randn(16, 8, 24, 24)
    stored = patches(x, linear, 1.0).nbytes
    assert memory.peak_bytes(lambda: linear.correlate(x, g)) < stored / 4
    assert memory.peak_bytes(lambda: patches(x, linear, 1.0)) >= stored
