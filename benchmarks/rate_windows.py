"""Error of the gradient of rates by the number of windows, with and without links: predicted and measured.

    python benchmarks/rate_windows.py [FOLDER] [--decays 0.2 0.5 0.8] [--steps 20]

Patterns that move over 40 inputs, two hidden layers of 48 LIF neurons with a detached reset that subtracts, weights of
standard deviation 1.6 / sqrt(inputs), 16 samples, float64. For each decay it prints `gradient_decomposition` of one
batch, and the same for a picture that stands still. With a folder it draws `rate_windows.png` of the first layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_snn import LIF, figures
from lightning_snn.functional import Sigmoid
from lightning_snn.methods.rate import GradientDecomposition, gradient_decomposition

SAMPLES, INPUTS, HIDDEN, CLASSES = 16, 40, 48, 10


def moving_patterns(steps: int) -> Tensor:
    """Return spikes `[T, B, inputs]` of a bump that crosses all inputs once."""
    torch.manual_seed(1)
    place = torch.arange(INPUTS) - torch.rand(SAMPLES, 1) * INPUTS
    position = (place - torch.arange(steps)[:, None, None] * INPUTS / steps) % INPUTS
    return (torch.rand(steps, SAMPLES, INPUTS) < 0.6 * torch.exp(-0.5 * ((position - 5) / 2) ** 2) + 0.05).double()


def network(decay: float) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (INPUTS, HIDDEN):
        layers += [nn.Linear(inputs, HIDDEN), LIF(decay, 1.0, "subtract", True, Sigmoid())]
    found = nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES)).double()
    for layer in found:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.6 / layer.in_features**0.5)
    return found


def decompositions(decays: list[float], steps: int) -> dict[str, GradientDecomposition]:
    """Return the decompositions of moving patterns at each decay, and of a picture at the last one."""
    moving, y = moving_patterns(steps), torch.arange(SAMPLES) % CLASSES
    found = {f"events, decay {decay:g}": gradient_decomposition(network(decay), (moving, y)) for decay in decays}
    still = moving[:1].expand(steps, -1, -1)
    found[f"static, decay {decays[-1]:g}"] = gradient_decomposition(network(decays[-1]), (still, y))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where to write the figure")
    parser.add_argument("--decays", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    parser.add_argument("--steps", type=int, default=20, help="number of time steps T")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = decompositions(options.decays, options.steps)
    for title, each in found.items():
        print(f"{title}\n\n{each}\n")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        figure = figures.window_errors({title: each.layers["0"].curves() for title, each in found.items()})
        figures.save(figure, options.folder / "rate_windows.png")


if __name__ == "__main__":
    main()
