"""LIF scans of this library, SpikingJelly and snntorch, each with the plain recurrence whose gradient it should have.

All have the decay 0.5, the threshold 1, the soft reset and the arctangent surrogate. They differ in when a neuron fires
and resets: SpikingJelly's fires at its threshold, ours and snntorch's above it; snntorch resets a step later and
detaches the reset. So each is compared with backpropagation through time of its own equations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from _device import COSTS, Call, Case, Found, Row, autocast, costs, described, in_channels_last, measure, name_of
from torch import Tensor, nn

from lightning_snn.functional import ArcTangent, Dynamics, lif
from lightning_snn.functional.plain_lif import unrolled_lif
from lightning_snn.functional.scans.choice import VARIABLE

BETA = 0.5
DIFFERENCES = ("firing", "spikes that differ", "gradient difference")
LIF_HEADING = ("T, B, ...", "dtype", "contender", *COSTS, "GB/s", *DIFFERENCES)
LINEAR_HEADING = ("dtype", "contender", *COSTS, *DIFFERENCES)
Currents = Tensor | Iterable[Tensor]
Scan = Callable[[Any], Tensor]


class FiresAtThreshold(ArcTangent):
    """Arctangent surrogate of a neuron that also fires at its threshold."""

    def fire(self, membrane: Tensor, threshold: float | Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            return (membrane >= threshold).to(membrane.dtype)
        return torch.ge(membrane, threshold, out=out)


class Neurons(NamedTuple):
    """A library's LIF neurons.

    Attributes:
        scan: from currents `[T, B, ...]` to spikes; also from an iterable of steps, if `stepwise`.
        dynamics: their equations.
        stepwise: whether the library runs a network step by step.
    """

    scan: Scan
    dynamics: Dynamics
    stepwise: bool = False

    def reference(self, x: Currents) -> Tensor:
        """Return the spikes of the same equations by single operations under autograd, with a state in float32."""
        currents = x if isinstance(x, Tensor) else torch.stack(list(x))
        return unrolled_lif(currents, BETA, 1.0, self.dynamics)[0]


def our_scan(x: Tensor) -> Tensor:
    return lif(x, BETA)[0]


@contextmanager
def choosing_kernels(value: str | None) -> Iterator[None]:
    """Set the variable that chooses the implementation of scans, and restore it; None leaves the choice to the library.

    A body may set the variable itself.
    """
    before = os.environ.get(VARIABLE)
    try:
        _set_variable(value)
        yield
    finally:
        _set_variable(before)


def _set_variable(value: str | None) -> None:
    if value is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = value


def snntorch_neurons(device: torch.device) -> tuple[Neurons | None, str]:
    """Return snntorch's neurons, or None and the reason."""
    try:
        import snntorch
    except ImportError as error:
        return None, described(error)
    leaky = snntorch.Leaky(beta=BETA, spike_grad=snntorch.surrogate.atan()).to(device)

    def loop(x: Currents) -> Tensor:
        membrane, spikes = leaky.reset_mem(), []
        for current in x:
            fired, membrane = leaky(current, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    return Neurons(loop, Dynamics(order="leak_then_reset", detach_reset=True), stepwise=True), snntorch.__version__


def spikingjelly_neurons(device: torch.device, dtype: torch.dtype) -> tuple[Neurons | None, str]:
    """Return SpikingJelly's neurons in multi-step mode and their implementation, or None and the reason."""
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate

        implementation = str(functional.neuron_implementation("lif", device)["implementation"])
        layer = neuron.LIFNode(
            1 / (1 - BETA), decay_input=False, v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m"
        )
        in_precision(layer, device, dtype)
    except Exception as error:  # whatever another library lacks, ours is measured
        return None, described(error)

    def multi_step(x: Tensor) -> Tensor:
        functional.reset_net(layer)
        spikes: Tensor = layer(x)
        return spikes

    return Neurons(multi_step, Dynamics(surrogate=FiresAtThreshold())), implementation


def in_precision(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Let SpikingJelly's neurons run their kernel on narrow input, with a state in float32 as ours.

    Without it they run a loop on input in bfloat16 or float16, with a state in that dtype. Their kernels need a GPU.

    Raises:
        RuntimeError: if they cannot run there.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return network
    from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision

    mode: Any = "bf16" if dtype == torch.bfloat16 else "fp16"
    return prepare_model_for_precision(network, device, PrecisionConfig(mode, neuron_storage="fp32")).model


def scans(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Neurons], dict[str, str]]:
    """Return the neurons of every library by name, and why others are missing."""
    found = {"ours": Neurons(our_scan, Dynamics())}
    reasons = {}
    peers = {"SpikingJelly": spikingjelly_neurons(device, dtype), "snntorch": snntorch_neurons(device)}
    for name, (neurons, reason) in peers.items():
        if neurons is None:
            reasons[name] = reason
        else:
            found[name] = neurons
    return found, reasons


class Difference(NamedTuple):
    """Differences of spikes and gradients of a contender from the reference.

    Attributes:
        firing: spikes per neuron and step.
        spikes: number of spikes that differ.
        gradient: largest difference of a gradient, relative to the largest entry; infinity where one is not a number.
    """

    firing: float
    spikes: int
    gradient: float


def difference(
    found: Callable[[], Tensor], expected: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor | None = None
) -> Difference:
    """Return the difference of two ways to compute spikes from the same leaves.

    Args:
        found: computes the spikes of the contender.
        expected: computes the spikes of the reference.
        leaves: tensors whose gradients are compared.
        cotangent: gradient of the spikes; None is 1 for each.
    """
    spikes, gradients = _gradients(found, leaves, cotangent)
    true_spikes, true_gradients = _gradients(expected, leaves, cotangent)
    different = int((spikes != true_spikes).sum())
    largest = 0.0
    for gradient, true in zip(gradients, true_gradients, strict=True):
        scale = true.abs().max().float().clamp(min=1e-30)
        relative = float(gradient.sub_(true).abs_().max().float() / scale)
        # a comparison with NaN is false
        largest = relative if not relative <= largest else largest
    firing = int(spikes.count_nonzero()) / spikes.numel()
    return Difference(firing, different, largest if largest == largest else float("inf"))


def differences(*arguments: Any) -> tuple[Row, str]:
    """Return the columns of `DIFFERENCES` and "", or empty ones and why; arguments are those of `difference`."""
    try:
        return dict(zip(DIFFERENCES, difference(*arguments), strict=True)), ""
    except Exception as error:  # the reference needs more memory than the contenders, whose times are known
        return dict.fromkeys(DIFFERENCES), described(error)


def _gradients(
    call: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    spikes = call()
    weights = torch.ones_like(spikes) if cotangent is None else cotangent.to(spikes.dtype)
    return spikes.detach(), torch.autograd.grad(spikes, leaves, weights)


def lif_cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Time the scan alone on sequences `[T, B, ...]`."""
    wide, image = ((3, 2, 8), (3, 2, 4, 2, 2)) if small else ((16, 64, 65536), (16, 64, 64, 32, 32))
    for shape, last, dtype in (
        (wide, False, torch.float16),
        (wide, False, torch.float32),
        (image, True, torch.bfloat16),
    ):
        name = f"{name_of(dtype)}, {'x'.join(map(str, shape))}"
        yield Case(name, partial(lif_alone, shape, last, dtype, device), 1.0 if small else 8.0)


def lif_alone(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, device: torch.device, seconds: float
) -> Found:
    generator = torch.Generator(device).manual_seed(0)
    x, cotangent = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(2))
    if channels_last:
        x, cotangent = (in_channels_last(each) for each in (x, cotangent))
    x.requires_grad_()
    neurons, reasons = scans(device, dtype)

    def trained(scan: Scan) -> Call:
        def call() -> None:
            spikes = scan(x)
            spikes.backward(cotangent.to(spikes.dtype))
            x.grad = None

        return call

    def without_kernels() -> None:
        with choosing_kernels("loop"):
            trained(neurons["ours"].scan)()

    calls = {name: trained(each.scan) for name, each in neurons.items()}
    found, failed = measure({**calls, "ours, loop": without_kernels}, device, seconds)
    rows = []
    for name, cost in found.items():
        each = neurons[name.removesuffix(", loop")]
        with choosing_kernels("loop") if name.endswith("loop") else nullcontext():
            off, why = differences(lambda each=each: each.scan(x), lambda each=each: each.reference(x), [x], cotangent)
        failed |= {name: why} if why else {}
        # current, spikes and both gradients; what a library saves in between comes on top
        traffic = 4 * x.numel() * x.element_size() / 1e6
        rows.append(
            {
                "T, B, ...": "x".join(map(str, shape)) + (", channels last" if channels_last else ""),
                "dtype": name_of(dtype),
                "contender": name,
                **costs(cost, found.get("ours")),
                "GB/s": traffic / cost.ms,
                **off,
            }
        )
    return Found(rows, reasons | failed)


def linear_cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Time Open Neuromorphic's setting."""
    steps, batch, size = (6, 2, 32) if small else (500, 16, 16384)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"{name_of(dtype)}, T = {steps}, {size} neurons"
        yield Case(name, partial(linear_and_lif, steps, batch, size, dtype, device), 1.0 if small else 15.0)


def linear_and_lif(
    steps: int, batch: int, size: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> Found:
    torch.manual_seed(0)
    linear = nn.Linear(size, size, device=device)
    # so that neurons fire; of the standard initial weights the currents are smaller than the threshold
    nn.init.normal_(linear.weight, std=size**-0.5)
    x = torch.randn(steps, batch, size, device=device)
    neurons, reasons = scans(device, dtype)

    def spikes(each: Neurons, scan: Scan) -> Tensor:
        with autocast(device, dtype):
            return scan((linear(step) for step in x) if each.stepwise else linear(x))

    def call(each: Neurons) -> Call:
        def trained() -> None:
            spikes(each, each.scan).sum().backward()
            linear.zero_grad()

        return trained

    found, failed = measure({name: call(each) for name, each in neurons.items()}, device, seconds)
    rows = []
    for name, cost in found.items():
        each = neurons[name]
        off, why = differences(
            lambda each=each: spikes(each, each.scan),
            lambda each=each: spikes(each, each.reference),
            list(linear.parameters()),
        )
        failed |= {name: why} if why else {}
        rows.append(
            {
                "dtype": name_of(dtype),
                "contender": name,
                **costs(cost, found.get("ours")),
                **off,
            }
        )
    return Found(rows, reasons | failed)
