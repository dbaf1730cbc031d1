"""Detection of the places where a scan has to consist of plain operations: exporters, tracers and `torch.func`."""

from __future__ import annotations

import torch

# added in PyTorch 2.7; before, a scan within the compiler consists of plain operations as one within the exporter
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def plain_operations(opaque: bool = False) -> bool:
    """Return whether the caller records or transforms single operations.

    This holds in `torch.compile`, `torch.export`, `torch.jit.trace` (which ONNX's older exporter uses) and the
    transforms of `torch.func`. None of them can follow a loop that writes into buffers and has a backward pass of its
    own.

    Args:
        opaque: whether the scan is an operator, which `torch.compile` calls and does not follow. Exporters still need
            plain operations, because an exported program runs without this library.

    Example:
        >>> plain_operations()
        False
    """
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active() or _exporting():
        return True
    return torch.compiler.is_compiling() and not opaque
