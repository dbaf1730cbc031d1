"""Time of the LIF scan, forward and backward, compared with snntorch's loop and SpikingJelly's multi-step layer.

    python benchmarks/lif.py [--json results.json] [--rounds 15]

All compute the same neuron (soft reset, arctangent surrogate, attached reset if the peer has it) on the same input.
SpikingJelly is measured if it is installed: pip install --no-deps spikingjelly, and its dependencies. Ratios are peer
time / our time; above 1, ours is faster.
"""

from __future__ import annotations

from collections.abc import Callable

import snntorch
import torch
from _timing import compare, parser, show
from torch import Tensor, nn

from lightning_snn.functional import lif

try:
    from spikingjelly.activation_based import functional, neuron, surrogate
except ImportError:
    neuron = None

SHAPES = [(16, 64, 32, 16, 16), (4, 64, 64, 16, 16), (16, 128, 512), (100, 128, 128)]
BETA = 0.5


def contenders(x: Tensor, grad: Tensor) -> dict[str, Callable[[], None]]:
    """Return a forward and backward pass of each library over `x [T, B, ...]`."""

    def trained(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            x.grad = None
            forward().backward(grad)

        return call

    leaky = snntorch.Leaky(beta=BETA, spike_grad=snntorch.surrogate.atan())

    def loop() -> Tensor:
        membrane, spikes = torch.zeros_like(x[0]), []
        for current in x:
            spike, membrane = leaky(current, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    calls = {"ours": trained(lambda: lif(x, BETA)[0]), "snntorch": trained(loop)}
    if neuron is not None:
        layer: nn.Module = neuron.LIFNode(
            tau=1 / (1 - BETA), decay_input=False, v_reset=None, step_mode="m", surrogate_function=surrogate.ATan()
        )

        def multi_step() -> Tensor:
            functional.reset_net(layer)
            return layer(x)

        calls["spikingjelly"] = trained(multi_step)
    return calls


def main() -> None:
    options = parser(__doc__, threads=(1, 2)).parse_args()
    results, rows = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for shape in SHAPES:
            torch.manual_seed(0)
            x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
            found = compare(contenders(x, grad), options.rounds)
            results.append({"threads": threads, "shape": list(shape), **found})
            times = [f"{ms:.1f}" for ms in found["ms"].values()]
            ratios = [f"{value:.2f}" for name, value in found["ratio"].items() if name != "ours"]
            rows.append([str(threads), "x".join(map(str, shape)), *times, *ratios])
    names = list(results[0]["ms"])
    heading = ["threads", "T, B, ...", *(f"{n} ms" for n in names), *(f"{n} / ours" for n in names if n != "ours")]
    show(heading, rows, results, options.json)


if __name__ == "__main__":
    main()
