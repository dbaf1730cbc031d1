"""Training steps of whole networks, and of every learning rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from _device import (
    COSTS,
    Call,
    Case,
    Found,
    Measured,
    Row,
    autocast,
    costs,
    described,
    in_channels_last,
    measure,
    name_of,
    waits,
)
from _gpu_scans import in_precision
from _peers import Forward, in_snntorch, in_spikingjelly, with_relu
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    Progress,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.networks import MLP, VGG
from lightning_snn.nn import DetachedLIF

CLASSES = 10
STEP_HEADING = ("network", "T", "B", "dtype", "layout", "contender", *COSTS)
METHOD_HEADING = ("network", "T", "B", "method", *COSTS, "waits")


class SEWBlock(nn.Module):
    """Block of a SEW-ResNet (Fang et al. 2021) with addition: the spikes of its branch are added to its input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()

        def normalized(first: int, kernel: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(first, outputs, kernel, stride, kernel // 2, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), DetachedLIF()]

        self.branch = nn.Sequential(*normalized(inputs, 3, stride), *normalized(outputs, 3, 1))
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Sequential(*(normalized(inputs, 1, stride) if changes else ()))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def sew_resnet(channels: Sequence[int] = (64, 128, 256, 512), blocks: int = 2) -> nn.Sequential:
    """Return a SEW-ResNet for small images; a SEW-ResNet-18 by default."""
    layers = [nn.Conv2d(3, channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0]), DetachedLIF()]
    size = channels[0]
    for stage, outputs in enumerate(channels):
        for block in range(blocks):
            layers.append(SEWBlock(size, outputs, 2 if stage > 0 and block == 0 else 1))
            size = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, 10))


def step_cases(device: torch.device, small: bool, compiled: bool = False) -> Iterator[Case]:
    """Time training steps of normalized networks on images, ours in one graph if `compiled`."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "VGG-11": partial(VGG, channels=(4, "A", 8)) if small else VGG,
        "SEW-ResNet-18": partial(sew_resnet, (4, 8), 1) if small else sew_resnet,
    }
    narrow, wide = (torch.bfloat16, "channels last"), (torch.float32, "contiguous")
    if compiled:
        # tracing and compiling take most of the time, with tiny sizes too
        chosen = [("VGG-11", *narrow)] if small else [(name, *narrow) for name in networks]
    elif small:
        chosen = [("VGG-11", *wide), ("SEW-ResNet-18", *narrow)]
    else:
        chosen = [(name, *setting) for name in networks for setting in (narrow, wide)]
    for name, dtype, layout in chosen:
        setting = Setting(name, 2 if small else 4, 3 if small else 64, 8 if small else 32, dtype, layout)
        measured = partial(compiled_step if compiled else network_step, networks[name], setting, device)
        needs = 1.0 if small else 40.0 if compiled else 10.0
        yield Case(f"{name}, {name_of(dtype)}, {layout}", measured, needs)


class Setting(NamedTuple):
    """Network, images and number format of a training step.

    Attributes:
        network: its name.
        steps: T.
        batch: number of images.
        size: height and width of an image.
        dtype: of mixed precision, or float32.
        layout: "channels last" or "contiguous".
    """

    network: str
    steps: int
    batch: int
    size: int
    dtype: torch.dtype
    layout: str

    def data(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images `[T, B, 3, size, size]` and classes `[B]`."""
        torch.manual_seed(0)
        x = torch.rand(self.steps, self.batch, 3, self.size, self.size, device=device)
        y = torch.randint(CLASSES, (self.batch,), device=device)
        return (in_channels_last(x) if self.layout == "channels last" else x), y

    def placed(self, network: nn.Module, device: torch.device) -> nn.Module:
        order = torch.channels_last if self.layout == "channels last" else torch.contiguous_format
        return network.to(device=device, memory_format=order)  # type: ignore[call-overload]

    def rows(self, found: dict[str, Measured]) -> list[Row]:
        fixed = {
            "network": self.network,
            "T": self.steps,
            "B": self.batch,
            "dtype": name_of(self.dtype),
            "layout": self.layout,
        }
        return [{**fixed, "contender": name, **costs(cost, found.get("ours"))} for name, cost in found.items()]


def network_step(make: Callable[[], nn.Module], setting: Setting, device: torch.device, seconds: float) -> Found:
    """Time a training step of a network with the neurons of each library, and with ReLU."""
    x, y = setting.data(device)
    made: dict[str, tuple[nn.Module, Forward] | None] = {
        "ours": (make(), run),
        "ReLU, the limit": (with_relu(make()), run),
        "SpikingJelly": in_spikingjelly(make()),
        "snntorch": in_snntorch(make()),
    }
    calls, reasons = {}, {}
    for name, pair in made.items():
        if pair is None:
            reasons[name] = "it is not installed"
            continue
        network = setting.placed(pair[0], device)
        if name == "SpikingJelly":
            try:
                network = in_precision(network, device, setting.dtype)
            except Exception as error:  # whatever another library lacks, ours is measured
                reasons[name] = described(error)
                continue
        calls[name] = training_step(network, pair[1], x, y, setting.dtype)
    found, failed = measure(calls, device, seconds)
    return Found(setting.rows(found), reasons | failed)


def compiled_step(make: Callable[[], nn.Module], setting: Setting, device: torch.device, seconds: float) -> Found:
    """Time a training step of our network with and without `torch.compile`."""
    x, y = setting.data(device)
    # the code that the compiler makes for CPUs takes minutes to build
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    networks = {
        "ours": setting.placed(make(), device),
        "ours, compiled": torch.compile(setting.placed(make(), device), backend=backend),
    }
    calls = {name: training_step(network, run, x, y, setting.dtype) for name, network in networks.items()}
    found, failed = measure(calls, device, seconds)
    return Found(setting.rows(found), failed)


def training_step(network: nn.Module, forward: Forward, x: Tensor, y: Tensor, dtype: torch.dtype) -> Call:
    """Return a training step on images `[T, B, ...]`: forward, cross-entropy of the mean, backward and SGD."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def call() -> None:
        with autocast(x.device, dtype):
            loss = F.cross_entropy(forward(network, x).mean(0), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def convolutional(input_shape: tuple[int, int, int], widths: tuple[int, int]) -> nn.Sequential:
    """Return two convolutions without normalization, which every learning rule can train."""
    (channels, height, width), (first, second) = input_shape, widths
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        LIF(),
        nn.AvgPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        LIF(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), CLASSES),
    )


def methods(shape: tuple[int, ...], steps: int) -> dict[str, Method]:
    """Return the learning rules for samples of a shape; that which the others are compared with is first."""
    return {
        "SurrogateGradient": SurrogateGradient(),
        f"SurrogateGradient, checkpoint={steps // 2}": SurrogateGradient(checkpoint=steps // 2),
        "RateBackprop": RateBackprop(),
        "RateBackprop, streaming": RateBackprop(streaming=True),
        "SpikingBayes": SpikingBayes(),
        "NoisySpikes": NoisySpikes(),
        "TimeToFirstSpike": TimeToFirstSpike(input_shape=shape),
        "ExpectationPropagation": ExpectationPropagation(),
    }


def method_cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Time a step of every learning rule."""
    flat, image = ((12,), (2, 8, 8)) if small else ((784,), (3, 32, 32))
    hidden, widths = ((16, 16), (3, 4)) if small else ((1024, 1024), (64, 128))
    steps, batch = (4, 5) if small else (16, 128)
    networks: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "MLP": (lambda: MLP(flat, CLASSES, hidden), flat),
        "convolutions": (lambda: convolutional(image, widths), image),
    }
    for name, (make, shape) in networks.items():
        yield Case(name, partial(method_steps, name, make, shape, steps, batch, device), 1.0 if small else 12.0)


def method_steps(
    name: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    steps: int,
    batch: int,
    device: torch.device,
    seconds: float,
) -> Found:
    torch.manual_seed(0)
    # the same image at every step, because the first spike times of a sample have no further steps
    x = torch.rand(batch, *shape, device=device).expand(steps, *(-1,) * (1 + len(shape)))
    y = torch.randint(CLASSES, (batch,), device=device)
    calls = {each: method_step(make(), method, x, y) for each, method in methods(shape, steps).items()}
    ours = next(iter(calls))
    found, failed = measure(calls, device, seconds)
    rows = []
    for each, cost in found.items():
        fixed = {"network": name, "T": steps, "B": batch, "method": each}
        rows.append({**fixed, **costs(cost, found.get(ours)), "waits": waits(calls[each], device)})
    return Found(rows, failed)


def method_step(network: nn.Module, method: Method, x: Tensor, y: Tensor) -> Call:
    """Return a training step of a learning rule with its optimizer, by hand."""
    module = SpikingModule(network, method, num_classes=CLASSES).to(x.device).train()
    module.method.progress = Progress(0.5, 1000)
    made = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made

    def call() -> None:
        module.method.training_step(module.network, x, y).objective.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call
