"""Choice between the implementations of the scans: Triton kernels where they can run, a loop everywhere else."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Implementation = Literal["loop", "triton"]
VARIABLE = "LIGHTNING_SNN_KERNELS"
# the kernels hold their state in float32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)


class KernelChoice(NamedTuple):
    """Implementation of a scan, and why it is used.

    Attributes:
        implementation: "triton" for a kernel, "loop" for single operations at every step.
        reason: for people to read.
    """

    implementation: Implementation
    reason: str


_ON_CPU = KernelChoice("loop", "Triton kernels run on CUDA devices, but the device is cpu")


def kernels(device: str | torch.device | None = None, dtype: torch.dtype = torch.float32) -> dict[str, KernelChoice]:
    """Return which implementation of every scan would be used, and why.

    Triton kernels are used automatically on NVIDIA GPUs of compute capability 8.0 or higher where Triton is installed,
    as it is by the CUDA builds of PyTorch. The environment variable ``LIGHTNING_SNN_KERNELS`` overrides the choice:
    "loop" never uses a kernel; "triton" raises an error on a CUDA device where no kernel can run, and uses Triton's
    interpreter on a CPU if ``TRITON_INTERPRET=1`` is set. A scan that has no kernel runs as a loop in any case.

    Args:
        device: device of the input; None is the CUDA device if there is one, else the CPU.
        dtype: dtype of the input.

    Raises:
        ValueError: if the environment variable is neither "loop" nor "triton".
        RuntimeError: if it is "triton", and the kernels cannot run on that CUDA device.

    Example:
        >>> kernels("cpu")["lif"]
        KernelChoice(implementation='loop', reason='Triton kernels run on CUDA devices, but the device is cpu')
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "lif": scan_choice(torch.device(device), dtype),
        "lif with recurrent weights": KernelChoice("loop", "every step is a matrix product"),
        "lif with a surrogate of your own": KernelChoice("loop", "the kernels know the surrogates of the library"),
        "lif_rate": scan_choice(torch.device(device), dtype),
        "noisy_lif": scan_choice(torch.device(device), dtype),
        "noisy_lif with recurrent weights": KernelChoice("loop", "every step is a matrix product"),
    }


def scan_choice(device: torch.device, dtype: torch.dtype) -> KernelChoice:
    """Return the implementation of a scan that has a kernel, for input of that device and dtype.

    Raises:
        ValueError: if the environment variable is neither "loop" nor "triton".
        RuntimeError: if it is "triton", and the kernels cannot run on that CUDA device.
    """
    requested = os.environ.get(VARIABLE) or None
    if requested is None and device.type == "cpu":
        return _ON_CPU
    if requested not in (None, "loop", "triton"):
        raise ValueError(
            f"Expected environment variable {VARIABLE} to be 'loop' or 'triton', but got {requested!r}; "
            "unset it for the automatic choice"
        )
    if requested == "loop":
        return KernelChoice("loop", f"{VARIABLE}=loop")
    interpreted = device.type == "cpu" and requested == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return KernelChoice("loop", f"Triton kernels run on CUDA devices, but the device is {device.type}")
    if dtype not in DTYPES:
        return KernelChoice("loop", f"Triton kernels hold their state in float32, but the input is {dtype}")
    problem = _problem(device)
    if problem is None:
        return KernelChoice("triton", "interpreted on the CPU" if interpreted else "the device can run Triton kernels")
    if requested == "triton":
        raise RuntimeError(
            f"Expected Triton kernels to run on device {device}, because {VARIABLE}=triton is set, but {problem}; "
            "unset the variable to use the loop"
        )
    return KernelChoice("loop", problem)


def saves_input(x: Tensor) -> bool:
    """Return whether the LIF scan of input `x` saves `x` for its backward pass instead of the membrane potentials.

    It does in 16 bits, where a kernel computes the membrane potentials again: they would take twice as much memory.
    """
    return x.dtype.itemsize == 2 and _has_kernel(x.device, x.dtype)


def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    return scan_choice(device, dtype).implementation == "triton"


# what `torch.compiler.assume_constant_result` does, which would import the compiler, and Triton, with this library
_has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _problem(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on a device that is supposed to run them; None if they can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the kernels are built and tested for NVIDIA GPUs only"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"the kernels need compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or higher"
    return None
