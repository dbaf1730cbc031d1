"""A whole training step by backpropagation through time, against the same network in snntorch and in SpikingJelly.

    python benchmarks/step.py [--json results.json] [--rounds 15] [--compile]

The network is the VGG 16-16-A-32-32-A-64 with batch normalization and average pooling on 32x32x3 images, T = 16, batch
16. A step is forward, cross-entropy of the mean output, backward and SGD. The limit is the same network with ReLU on
the T * B images. snntorch runs the network step by step in a Python loop, as its documentation does; SpikingJelly in
its multi-step mode; this library with time folded into the batch. SpikingJelly is measured if it is installed: pip
install --no-deps spikingjelly, and its dependencies.
"""

from __future__ import annotations

from collections.abc import Callable

import snntorch
import torch
import torch.nn.functional as F
from _timing import compare, parser, show
from torch import Tensor, nn

from lightning_snn import LIF, run

try:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
except ImportError:
    neuron = None

T, B, BETA = 16, 16, 0.5
WIDTHS = (16, 16, "A", 32, 32, "A", 64)


def vgg(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return a VGG: convolution, batch-norm and activation per width, average pooling per A, and a linear readout."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width == "A":
            layers.append(nn.AvgPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), activation()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def contenders(x: Tensor, y: Tensor, compiled: bool) -> dict[str, Callable[[], None]]:
    """Return a training step of each library on images `x [T, B, 3, 32, 32]`."""

    def step(network: nn.Module, forward: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

        def call() -> None:
            optimizer.zero_grad()
            F.cross_entropy(forward(network).mean(0), y).backward()
            optimizer.step()

        return call

    def folded(network: nn.Module) -> Tensor:
        return run(network, x)

    def loop(network: nn.Module) -> Tensor:
        for module in network:
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        return torch.stack([network(frame) for frame in x])

    def leaky() -> nn.Module:
        return snntorch.Leaky(beta=BETA, spike_grad=snntorch.surrogate.atan(), init_hidden=True)

    calls = {
        "ours": step(vgg(lambda: LIF(BETA)), folded),
        "snntorch": step(vgg(leaky), loop),
        "relu limit": step(vgg(nn.ReLU), lambda network: network(x.flatten(0, 1)).unflatten(0, (T, B))),
    }
    if compiled:
        calls["ours compiled"] = step(torch.compile(vgg(lambda: LIF(BETA))), folded)
    if neuron is not None:

        def node() -> nn.Module:
            tau = 1 / (1 - BETA)
            return neuron.LIFNode(
                tau, decay_input=False, v_reset=None, step_mode="m", surrogate_function=surrogate.ATan()
            )

        def multi_step(network: nn.Module) -> Tensor:
            functional.reset_net(network)
            return network(x)

        calls["spikingjelly"] = step(_multi_step_layers(vgg(node)), multi_step)
    return calls


def _multi_step_layers(network: nn.Sequential) -> nn.Sequential:
    """Replace every stateless layer by SpikingJelly's multi-step layer with the same arguments."""
    layers: list[nn.Module] = []
    for module in network:
        if isinstance(module, nn.Conv2d):
            made = layer.Conv2d(module.in_channels, module.out_channels, 3, padding=1, bias=False)
        elif isinstance(module, nn.BatchNorm2d):
            made = layer.BatchNorm2d(module.num_features)
        elif isinstance(module, nn.AvgPool2d):
            made = layer.AvgPool2d(2)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            made = layer.AdaptiveAvgPool2d(1)
        elif isinstance(module, nn.Flatten):
            made = layer.Flatten()
        elif isinstance(module, nn.Linear):
            made = layer.Linear(module.in_features, module.out_features)
        else:
            made = module
        layers.append(made)
    made = nn.Sequential(*layers)
    functional.set_step_mode(made, "m")
    return made


def main() -> None:
    made = parser(__doc__, threads=(2,))
    made.add_argument("--compile", action="store_true", help="measure our network under torch.compile too")
    options = made.parse_args()
    results, rows = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        x, y = torch.rand(B, 3, 32, 32).expand(T, -1, -1, -1, -1), torch.randint(10, (B,))
        found = compare(contenders(x, y, options.compile), options.rounds)
        results.append({"threads": threads, **found})
        rows += [[str(threads), name, f"{ms:.1f}", f"{found['ratio'][name]:.2f}"] for name, ms in found["ms"].items()]
    show(["threads", "contender", "ms", "time / ours"], rows, results, options.json)


if __name__ == "__main__":
    main()
