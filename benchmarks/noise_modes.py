"""Firing rates and spike counts of the noise modes of SpikingBayes against one static draw of the weights per sequence.

    python benchmarks/noise_modes.py [--seeds 0 1 2] [--draws 4000]

A layer of 16 LIF neurons, without biases, with the posterior that `SpikingBayes.prepare` draws, receives one random
spike train of T steps and N inputs. Each mode runs it `draws` times; so do static draws of the weights, which are
exact. Rows are means over the seeds: the largest difference of a neuron's firing rate from that under static draws, and
the variance of its spike count over draws, mean over neurons.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.functional.noisy_lif import NOISE_MODES
from lightning_snn.methods import SpikingBayes
from lightning_snn.nn import posterior_noise, weight_draws

NEURONS = 16


class Setting(NamedTuple):
    steps: int
    inputs: int
    rate: float
    beta: float
    kappa: float


SETTINGS = (Setting(10, 40, 0.3, 0.9, 0.5), Setting(20, 100, 0.1, 0.8, 0.5), Setting(20, 100, 0.1, 0.8, 0.3))


@torch.no_grad()
def counts(setting: Setting, seed: int, draws: int) -> dict[str, Tensor]:
    """Return the spike counts `[draws, NEURONS]` under each noise mode, and under "static" draws of the weights."""
    torch.manual_seed(seed)
    x = (torch.rand(setting.steps, 1, setting.inputs) < setting.rate).float().expand(-1, draws, -1)
    found = {}
    for mode in NOISE_MODES:
        torch.manual_seed(seed)  # the same posterior
        method = SpikingBayes(noise_mode=mode, kappa=setting.kappa)
        layers = nn.Sequential(nn.Linear(setting.inputs, NEURONS, bias=False), LIF(setting.beta))
        network = method.prepare(layers)
        with posterior_noise(1.0, mode):
            found[mode] = run(network, x).sum(0)
    with weight_draws(draws):
        found["static"] = run(network, x).sum(0)
    return found


def row(setting: Setting, seeds: Sequence[int], draws: int) -> dict[str, tuple[float, float]]:
    """Return the largest difference of rates and the variance of counts of each mode, means over the seeds."""
    by_seed = [counts(setting, seed, draws) for seed in seeds]
    return {
        mode: (
            fmean(((each[mode] - each["static"]).mean(0).abs().max() / setting.steps).item() for each in by_seed),
            fmean(each[mode].var(0).mean().item() for each in by_seed),
        )
        for mode in by_seed[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| T, inputs, rate, decay, kappa | mode | largest error of a rate | variance of spike counts |")
    print("|---|---|---|---|")
    for setting in SETTINGS:
        name = ", ".join(f"{value:g}" for value in setting)
        for mode, (error, variance) in row(setting, options.seeds, options.draws).items():
            print(f"| {name} | {mode} | {error:.3f} | {variance:.2f} |")


if __name__ == "__main__":
    main()
