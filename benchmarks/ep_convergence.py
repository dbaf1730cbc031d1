"""Convergence of Expectation Propagation on a batch: the longest steps that converge, estimated and measured.

    python benchmarks/ep_convergence.py --mnist mnist.npz [--figure ep_convergence.png] [--json results.json]

Chains of fully connected layers on the first digits of MNIST, 14 x 14 pixels (means of 2 x 2 above 0.4), one batch from
the prior, float64. Printed are the eigenvalue and the stable damping of `ep_stability`, and the factor by which an
iteration multiplies a small deviation from the fixed point, measured with two runs of steps of several lengths, next to
the factor that the eigenvalue predicts. The factor of a slow deviation that does not alternate is measured where it is
larger. The figure has the factors, and the error of one weight over passes: restarted at the cavity, as the library did
before, continued at the posterior, and undamped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn import figures
from lightning_snn.data.image_files import read_mnist
from lightning_snn.methods import ExpectationPropagation
from lightning_snn.methods.ep import BatchUpdate, MessageNetwork, Natural, ep_stability, update_batch
from lightning_snn.methods.tasks import Regression
from lightning_snn.nn import LIF

CHAINS = [((20,), 50), ((20,), 200), ((40,), 200), ((20, 20), 200), ((20, 20), 600)]
DRAWN = [((20,), 200), ((20, 20), 200)]
SHARES = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # of the stable damping
PRIORS = {"(1, 10), split 0.5": (1.0, 0.5), "default": (3.0, 0.2)}
SOLVER_ITERATIONS, ITERATIONS = 10, 24
PRIOR, NOISE, VALUE = 0.5, 0.09, 1.5  # of the example with one weight
PASSES = 5


def digits(path: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return pixels of 0 and 1 `[N, 196]` and classes `[N]`."""
    train, _ = read_mnist(path)
    images = torch.from_numpy(train.images[:samples]).double().view(-1, 1, 28, 28) / 255
    return (F.avg_pool2d(images, 2) > 0.4).double().flatten(1), torch.from_numpy(train.labels[:samples]).long()


def chain(hidden: tuple[int, ...], variance: float, split: float) -> MessageNetwork:
    """Return a chain with 196 inputs and 10 outputs, in float64, drawn with seed 0."""
    layers: list[nn.Module] = []
    for before, after in pairwise((196, *hidden, 10)):
        layers += [nn.Linear(before, after), LIF()]
    method = ExpectationPropagation(prior_variance=[variance] * len(hidden) + [10.0], prior_split=split)
    network = nn.Sequential(*layers[:-1]).double()
    torch.manual_seed(0)
    prepared = method.prepare(network)
    assert isinstance(prepared, MessageNetwork)
    return prepared


class Batch:
    """A batch at its fixed point, reached by short steps."""

    def __init__(self, network: MessageNetwork, x: Tensor, y: Tensor, damping: float) -> None:
        self.chain, self.x, self.y = network.chain, x, y
        self.cavities = [block.layer.natural for block in self.chain.blocks]
        self.fixed = update_batch(self.chain, self.cavities, x, y, 300, damping, SOLVER_ITERATIONS)

    def factor(self, damping: float) -> float:
        """Return the mean factor of the last 8 iterations on a deviation of the means by 0.01 standard deviations."""
        random = torch.Generator().manual_seed(1)
        moved = [
            natural._replace(
                precision_mean=natural.precision_mean
                + 0.01 * natural.precision.sqrt() * torch.randn(natural.precision.shape, generator=random).double()
            )
            for natural in self.fixed.natural
        ]
        states = [self.fixed, replace(self.fixed, natural=moved)]
        found = []
        for _ in range(ITERATIONS):
            states = [self.iterated(state, damping) for state in states]
            found.append(distance(*(state.natural for state in states)))
        return (found[-1] / found[-9]) ** (1 / 8)

    def iterated(self, state: BatchUpdate, damping: float) -> BatchUpdate:
        return update_batch(
            self.chain, self.cavities, self.x, self.y, 1, damping, SOLVER_ITERATIONS, state.natural, state.scores
        )


def distance(one: list[Natural], other: list[Natural]) -> float:
    """Return the distance of precision-means in standard deviations of the weights."""
    parts = [
        ((a.precision_mean - b.precision_mean).square() / a.precision).sum() for a, b in zip(one, other, strict=True)
    ]
    return torch.stack(parts).sum().sqrt().item()


def one_weight(damping: float, restart: bool) -> list[float]:
    """Return the relative error of the mean of one weight after each pass of 6 iterations over one value."""
    method = ExpectationPropagation(prior_variance=PRIOR, noise_variance=NOISE)
    method.task = Regression()
    network = method.prepare(nn.Linear(1, 1, bias=False).double())
    assert isinstance(network, MessageNetwork)
    cavities, start = [block.layer.natural for block in network.chain.blocks], None
    x, y = torch.ones(2, 1, 1, dtype=torch.float64)
    exact = VALUE / NOISE / (1 / PRIOR + 1 / NOISE)
    errors = [1.0]
    for _ in range(PASSES):
        update = update_batch(network.chain, cavities, x, VALUE * y, 6, damping, 3, start)
        start = None if restart else update.natural
        mean = update.natural[0].precision_mean / update.natural[0].precision
        errors.append(abs(mean.item() / exact - 1))
    return errors


def draw(results: list[dict[str, Any]], path: str) -> None:
    """Draw the error of one weight, and factors over the damping, and write the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, damping, restart in (
        ("restart at the cavity, 6 x 0.3", 0.3, True),
        ("start at the posterior, 6 x 0.3", 0.3, False),
        ("6 x 1, the default of one layer", 1.0, False),
    ):
        errors = [max(error, 1e-12) for error in one_weight(damping, restart)]
        left.semilogy(range(PASSES + 1), errors, "o-", label=label)
    left.set(xlabel="passes", ylabel="relative error of the mean", title="one weight, one value")
    left.legend(fontsize=8)
    for row in results:
        if (tuple(row["hidden"]), row["samples"]) in DRAWN and row["prior"] != "default":
            name = "-".join(map(str, (196, *row["hidden"], 10)))
            (line,) = right.plot(row["dampings"], row["predicted"], label=f"{name}, predicted")
            right.plot(row["dampings"], row["measured"], "o", color=line.get_color(), label="measured")
    right.axhline(1, color="gray", linewidth=0.8)
    right.set(xlabel="damping", ylabel="factor per iteration", title="one batch of 200 digits")
    right.legend(fontsize=8)
    figures.save(figure, path)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="an .npz file, or torchvision's folder")
    parser.add_argument("--figure", help="draw the figure to this .png file")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for hidden, samples in CHAINS:
        x, y = digits(options.mnist, samples)
        for prior, (variance, split) in PRIORS.items():
            network = chain(hidden, variance, split)
            stability = ep_stability(network, x[None], y)
            name, stable = "-".join(map(str, (196, *hidden, 10))), stability.stable_damping
            print(
                f"{name:<14} {samples:>4} digits, prior {prior:<18}  eigenvalue {stability.eigenvalue:.3f}  stable "
                f"damping {stable:.3f}  settled {stability.settled}  residual {stability.residual:.3g}",
                flush=True,
            )
            row = {"hidden": hidden, "samples": samples, "prior": prior, "eigenvalue": stability.eigenvalue.real}
            results.append(row | {"stable damping": stable, "settled": stability.settled})
            if prior == "default":
                continue
            batch = Batch(network, x, y, 0.3 * min(1, stable))
            dampings = [share * stable for share in SHARES]
            predicted = [abs(1 - damping * (1 - stability.eigenvalue)) for damping in dampings]
            measured = [batch.factor(damping) for damping in dampings]
            results[-1] |= {"dampings": dampings, "predicted": predicted, "measured": measured}
            for numbers in zip(dampings, predicted, measured, strict=True):
                print("    damping {:.3f}  factor predicted {:.3f}  measured {:.3f}".format(*numbers), flush=True)
    if options.figure:
        draw(results, options.figure)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
