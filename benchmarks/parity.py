"""Parity of every way to run the scans: are spikes equal, and by how much do gradients differ?

    python benchmarks/parity.py [--scans lif rate noisy] [--backends loop triton aot_eager inductor] [--json FILE]

"lif" is the scan of LIF neurons. "rate" is that of RateBackprop: its states are membrane and rate, its gradients the
derivatives of the rate of every neuron. "noisy" is that of noisy neurons: its state is z, and its rows have the noise
mode in the place of order and surrogate.

Every backend, dtype, reset, order, surrogate and layout is compared with the recurrence in single operations under
autograd, on a CPU: with decay and threshold learned per channel, from a given state, with the reset attached and
detached. A row has the larger difference of the two. Spikes and states are compared in the same dtype, gradients with
those in float64, relative to the largest entry of each. The command ends with code 1 if spikes or states are not equal
or a gradient differs by more than its tolerance.

"loop" runs on the GPU if there is one, "triton" too; without a GPU the Triton kernels are interpreted on the CPU.
"aot_eager" and "inductor" are backends of torch.compile. Without --backends: the loop, Triton if it is installed, and
"aot_eager".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from _parity_scans import (
    Result,
    noise_like,
    noisy_reference,
    noisy_result,
    on_cpu,
    rate_reference,
    rate_result,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from lightning_snn.functional import Dynamics, PendingState, lif
from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.noisy_lif import NOISE_MODES
from lightning_snn.functional.plain_lif import unrolled_lif
from lightning_snn.functional.scans.choice import VARIABLE, kernels
from lightning_snn.functional.surrogate import SURROGATES

SCANS = ("lif", "rate", "noisy")
BACKENDS = ("loop", "triton", "aot_eager", "inductor")
# of the largest entry: rounding errors in float32, or of the one rounding to a narrow dtype
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DTYPES = [str(dtype).removeprefix("torch.") for dtype in TOLERANCES]
NO_MODE, LAM = ("zero", "trace"), 0.5
STEPS, BATCH, CHANNELS, HEIGHT, WIDTH = 8, 2, 3, 4, 5

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "constant over time": lambda x: x[:1].expand_as(x),
}


class Row(NamedTuple):
    """Comparison of one case.

    Attributes:
        scan: of `SCANS`.
        backend: of `BACKENDS`.
        dtype: of the input.
        reset: of `RESETS`.
        order: of `ORDERS`.
        surrogate: of `SURROGATES`.
        layout: of `LAYOUTS`.
        spikes: number of spikes that differ.
        state: largest difference of the final state.
        gradient: largest difference of a gradient.
        tolerance: of the gradient.
    """

    scan: str
    backend: str
    dtype: str
    reset: str
    order: str
    surrogate: str
    layout: str
    spikes: int
    state: float
    gradient: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Spikes and states are equal, and gradients within their tolerance."""
        return self.spikes == 0 and self.state == 0 and self.gradient <= self.tolerance


def inputs(dtype: torch.dtype, layout: str, device: str = "cpu") -> tuple[list[Tensor], Tensor]:
    """Return input current, decay, threshold, membrane potential and spikes before, and the gradient of the spikes."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    step = (BATCH, CHANNELS, HEIGHT, WIDTH)
    x = LAYOUTS[layout]((2 * random(STEPS, *step) - 0.5).to(dtype).to(device))
    channels = [random(CHANNELS, 1, 1).to(wide), (random(CHANNELS, 1, 1) + 0.5).to(wide)]
    before = [random(*step).to(wide), random(*step).round().to(wide)]
    cotangent = LAYOUTS[layout]((random(STEPS, *step) - 0.5).to(dtype))
    return [each.to(device).detach().requires_grad_() for each in (x, *channels, *before)], cotangent.to(device)


def result(
    scan: Callable[..., Any],
    dynamics: Dynamics,
    dtype: torch.dtype,
    layout: str,
    device: str = "cpu",
    exact: bool = False,
) -> Result:
    """Return spikes, final state and gradients of a scan with the arguments of `lif`, on the CPU.

    `exact` computes in float64, on the same input.
    """
    leaves, cotangent = inputs(dtype, layout, device)
    if exact:
        leaves, cotangent = [each.detach().double().requires_grad_() for each in leaves], cotangent.double()
    x, beta, threshold, membrane, before = leaves
    if not dynamics.pending_reset:
        leaves = leaves[:-1]
    state = PendingState(membrane, before) if dynamics.pending_reset else membrane
    spikes, state = scan(x, beta, threshold, dynamics, state)
    final = tree_leaves(state)
    # the second part of a pending state is the last spikes
    loss = (spikes * cotangent).sum(dtype=final[0].dtype) + (final[0] * cotangent[0]).sum()
    gradients = torch.autograd.grad(loss, leaves)
    return on_cpu(spikes, final, list(gradients))


def reference(
    x: Tensor, beta: Tensor, threshold: Tensor, dynamics: Dynamics, state: Tensor | PendingState
) -> tuple[Tensor, Any]:
    """Return what `lif` does, by single operations under autograd."""
    membrane, before = state if isinstance(state, PendingState) else (state, None)
    return unrolled_lif(x, beta, threshold, dynamics, membrane, before)


def compared(
    backend: str,
    dtype: torch.dtype,
    reset: Any,
    order: Any,
    surrogate: str,
    layout: str,
    device: str = "cpu",
    scan: str = "lif",
) -> Row:
    """Return the comparison of one case; a noisy scan has its mode for `order` and `surrogate`."""
    os.environ.pop(VARIABLE, None)
    if backend in ("loop", "triton"):
        os.environ[VARIABLE] = backend

    def run(function: Callable[..., Any]) -> Callable[..., Any]:
        if backend in ("loop", "triton"):
            return function
        torch._dynamo.reset()
        return torch.compile(function, backend=backend, fullgraph=True)

    different, states, gradients = 0, [0.0], [0.0]
    for detached in (False, True):
        if scan == "noisy":
            found, same, exact = noisy_results(
                Dynamics(reset, detach_reset=detached), order, dtype, layout, device, run
            )
        else:
            dynamics = Dynamics(reset, order, detached, SURROGATES[surrogate]())
            results = lif_results if scan == "lif" else rate_results
            found, same, exact = results(dynamics, dtype, layout, device, run)
        different += int((found[0] != same[0]).sum())
        states += map(difference, found[1], same[1])
        gradients += map(difference, found[2], exact[2])
    # derivatives of the rate stay in float32
    tolerance = TOLERANCES[torch.promote_types(dtype, torch.float32) if scan == "rate" else dtype]
    name = str(dtype).removeprefix("torch.")
    numbers = (different, max(states), max(gradients), tolerance)
    return Row(scan, backend, name, reset, order, surrogate, layout, *numbers)


Run = Callable[[Callable[..., Any]], Callable[..., Any]]


def lif_results(dynamics: Dynamics, dtype: torch.dtype, layout: str, device: str, run: Run) -> tuple[Result, ...]:
    """Return the result of the LIF scan, and the references in its dtype and in float64."""
    same = result(reference, dynamics, dtype, layout)
    exact = result(reference, dynamics, dtype, layout, exact=True)
    return result(run(lif), dynamics, dtype, layout, device), same, exact


def rate_results(dynamics: Dynamics, dtype: torch.dtype, layout: str, device: str, run: Run) -> tuple[Result, ...]:
    """Return the result of the rate scan, and the references in its dtype and in float64."""
    given = [each.detach() for each in inputs(dtype, layout, device)[0][:3]]
    moved = [each.cpu() for each in given]
    return (
        rate_result(*given, dynamics, run),
        rate_reference(*moved, dynamics),
        rate_reference(*(each.double() for each in moved), dynamics),
    )


def noisy_results(
    dynamics: Dynamics, mode: str, dtype: torch.dtype, layout: str, device: str, run: Run
) -> tuple[Result, ...]:
    """Return the result of the noisy scan, and the references in its dtype and in float64, for the same noise."""
    (mean, *parameters, _, _), cotangent = inputs(dtype, layout, device)
    cotangent = cotangent.abs()  # so that the gradient of a parameter is no small sum of large terms
    variance = mean.detach().square().clone(memory_format=torch.preserve_format) + 0.1
    leaves = [mean.detach(), variance, *parameters]
    noise = noise_like(leaves[0])

    def leaves_on(device: str, wide: bool) -> list[Tensor]:
        moved = [each.detach().to(device) for each in leaves]
        return [(each.double() if wide else each).requires_grad_() for each in moved]

    found = noisy_result(leaves_on(device, False), cotangent, dynamics, mode, LAM, run)
    arguments = (dynamics, mode, LAM, noise)
    same = noisy_reference(leaves_on("cpu", False), cotangent.cpu(), *arguments)
    exact = noisy_reference(leaves_on("cpu", True), cotangent.cpu().double(), *arguments, fired=same.spikes)
    return found, same, exact


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest entry; infinity where a value is not a number."""
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def table(
    backends: Sequence[str], dtypes: Sequence[str], layouts: Sequence[str], device: str, scans: Sequence[str] = SCANS
) -> list[Row]:
    """Return the comparisons of every case, with a progress bar."""
    chosen = [getattr(torch, name) for name in dtypes]
    variants = {
        "lif": list(product(RESETS, ORDERS, SURROGATES)),
        "rate": list(product(RESETS, ORDERS, SURROGATES)),
        # mode "trace" has no reset to zero
        "noisy": [(reset, mode, mode) for reset, mode in product(RESETS, NOISE_MODES) if (reset, mode) != NO_MODE],
    }
    cases = [
        (backend, dtype, *variant, layout, device, scan)
        for scan in scans
        for backend, dtype, variant, layout in product(backends, chosen, variants[scan], layouts)
        if not (backend == "triton" and dtype == torch.float64)  # the kernels hold their state in float32
    ]
    return [compared(*case) for case in tqdm(cases, desc="cases")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=SCANS, default=SCANS)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args(arguments)
    has_triton = importlib.util.find_spec("triton") is not None
    backends = options.backends or ["loop", *(["triton"] if has_triton else []), "aot_eager"]
    if "triton" in backends and not has_triton:
        parser.error("Expected Triton to be installed for --backends triton; leave it out to compare the others")
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "triton" in backends and device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    rows = table(backends, options.dtypes, options.layouts, device, options.scans)
    for name in backends:
        if name == "triton":
            os.environ[VARIABLE] = "triton"
            print(f"triton: {kernels(device)['lif'].reason}")
        else:
            print(f"{name}: on {device}")
    if not has_triton:
        print("triton: not compared, because it is not installed")
    heading = (
        "scan",
        "backend",
        "dtype",
        "reset",
        "order",
        "surrogate",
        "layout",
        "spikes",
        "state",
        "gradient",
        "tolerance",
    )
    print("  ".join(f"{cell:18}" for cell in heading))
    for row in rows:
        spikes = "equal" if row.spikes == 0 else f"{row.spikes} differ"
        cells = (*row[:7], spikes, f"{row.state:.1e}", f"{row.gradient:.1e}", f"{row.tolerance:.1e}")
        print("  ".join(f"{cell:18}" for cell in cells) + ("" if row.passes else "  FAILS"))
    failed = sum(not row.passes for row in rows)
    print(f"{len(rows)} cases, {failed} fail")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([row._asdict() | {"passes": row.passes} for row in rows], file, indent=2)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
