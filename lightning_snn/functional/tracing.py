"""Detection of the places where a scan has to consist of plain operations: exporters, tracers and `torch.func`."""

from __future__ import annotations

import torch


def plain_operations() -> bool:
    """Return whether the caller records or transforms single operations.

    This holds in `torch.compile`, `torch.export`, `torch.jit.trace` (which ONNX's older exporter uses) and the
    transforms of `torch.func`. None of them can follow a loop that writes into buffers and has a backward pass of its
    own.

    Example:
        >>> plain_operations()
        False
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
