"""Times, memory and waits of calls on a device: the same code for a GPU and, to try it without one, for a CPU.

On a GPU, times are those between two events, and nothing waits for the GPU within them.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_snn.metrics.memory import peak_bytes

MEGABYTE = 1 << 20
WARMUP, LEAST_ROUNDS, MOST_ROUNDS = 3, 3, 50
COSTS = ("ms", "spread", "/ ours", "peak MB")
Call = Callable[[], object]
Row = dict[str, Any]


class Measured(NamedTuple):
    """Cost of a call.

    Attributes:
        ms: median time in milliseconds.
        low: first quartile of the times.
        high: third quartile of the times.
        rounds: number of calls.
        peak_mb: largest memory that a call allocates, in MB, beyond that allocated before it.
    """

    ms: float
    low: float
    high: float
    rounds: int
    peak_mb: float


class Found(NamedTuple):
    """Result of a case.

    Attributes:
        rows: of the table of its section.
        reasons: why contenders have no row.
    """

    rows: list[Row]
    reasons: dict[str, str]


class Case(NamedTuple):
    """Part of a table that is measured whole or not at all.

    Attributes:
        name: what it is called if it is left out.
        run: measures within some seconds, approximately.
        needs: seconds below which it is not started.
    """

    name: str
    run: Callable[[float], Found]
    needs: float


class Deadline:
    """Time that a run may take.

    Args:
        minutes: for the whole run, from now on.
        clock: clock in seconds.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = 60 * minutes, clock
        self.start = clock()

    def left(self, share: float = 1.0) -> float:
        """Return the seconds until a share of the whole time has passed; below 0 afterwards."""
        return share * self.seconds - (self.clock() - self.start)


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def elapsed_ms(call: Call, device: torch.device) -> float:
    """Return the time of a call: on a GPU that between two events around its work, which begins on an idle device."""
    synchronize(device)
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(torch.cuda.current_stream(device))
    call()
    end.record(torch.cuda.current_stream(device))
    end.synchronize()
    return start.elapsed_time(end)


def peak_mb(call: Call, device: torch.device) -> float:
    """Return the largest memory that a call allocates, in MB, beyond that allocated before it."""
    return peak_bytes(call, device) / MEGABYTE


def waits(call: Call, device: torch.device) -> int | None:
    """Return how often a call waits for the GPU, because it reads a value or a shape; None on a CPU."""
    if device.type != "cuda":
        return None
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


def measure(
    contenders: Mapping[str, Call], device: torch.device, seconds: float
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Return the cost of each contender, over interleaved rounds after a warm-up, and why others have none.

    Args:
        contenders: calls by name, which leave no gradients behind.
        device: where they run.
        seconds: for all rounds together, approximately; at least `LEAST_ROUNDS` are taken.
    """
    reasons: dict[str, str] = {}
    ready: dict[str, Call] = {}
    peaks: dict[str, float] = {}
    expected = 0.0
    for name, call in contenders.items():
        try:
            _warm_up(call, device)
            peaks[name] = peak_mb(call, device)
            expected += elapsed_ms(call, device)
            ready[name] = call
        except Exception as error:  # one that fails, of another library or for want of memory, is a result too
            reasons[name] = described(error)
            release(device)
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(1e3 * seconds / max(expected, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, call in ready.items():
            times[name].append(elapsed_ms(call, device))
    found = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        found[name] = Measured(median, low, high, rounds, peaks[name])
    return found, reasons


def costs(found: Measured, ours: Measured | None) -> Row:
    """Return the columns of `COSTS`."""
    ratio = None if ours is None else found.ms / ours.ms
    return dict(zip(COSTS, (found.ms, [found.low, found.high], ratio, found.peak_mb), strict=True))


def _warm_up(call: Call, device: torch.device) -> None:
    """Compile, choose algorithms and allocate; a call of seconds is warm after the first."""
    start = time.perf_counter()
    for _ in range(WARMUP):
        call()
        synchronize(device)
        if time.perf_counter() - start > 1:
            break


def described(error: Exception) -> str:
    """Return type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def release(device: torch.device) -> None:
    """Give memory that no tensor uses back to the device, so that one contender leaves none of it to the next."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context of mixed precision; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def in_channels_last(x: Tensor) -> Tensor:
    """Return images `[T, B, C, H, W]` whose channels lie last in memory."""
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def facts(device: torch.device) -> dict[str, Any]:
    """Return what the results depend on: device, versions, and settings of matrix products and convolutions."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "memory, GB": round(properties.total_memory / 1e9, 1),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return found | {
        "TF32 in matrix products": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }
