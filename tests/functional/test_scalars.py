"""Numbers as tensors of another tensor's dtype and device."""

from __future__ import annotations

import pytest
import torch

from lightning_snn.functional.scalars import value_like, values_like
from tests.support.accelerator import Accelerator, on_accelerator, values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_number_is_rounded_as_torch_tensor_rounds_it(dtype):
    like = torch.zeros(2, dtype=dtype)
    found = value_like(1 / 3, like)
    assert torch.equal(found, torch.tensor(1 / 3, dtype=dtype))
    assert found.dtype == dtype
    assert torch.equal(values_like([1 / 3, -2], like), torch.tensor([1 / 3, -2], dtype=dtype))


def test_a_tensor_keeps_its_graph_and_takes_the_dtype():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    found = value_like(value, torch.zeros(3, dtype=torch.float64))
    assert found.dtype == torch.float64
    found.sum().backward()
    assert torch.equal(value.grad, torch.ones(2))


def test_numbers_are_made_on_the_device_and_do_not_wait_for_it():
    with Accelerator() as accelerator:
        like = on_accelerator(torch.zeros(2))
        accelerator.waits.clear()
        made = [value_like(0.5, like), values_like([0.5, 1.0], like)]
        assert accelerator.waits == []
        assert all(each.device == like.device for each in made)
        assert [values(each).tolist() for each in made] == [0.5, [0.5, 1.0]]
        torch.tensor(0.5, device=like.device)
        assert len(accelerator.waits) == 1
