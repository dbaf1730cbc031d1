"""Recurrent Expectation Propagation on tasks that need a memory; experimental.

    python benchmarks/ep_recurrent.py [--tasks memory xor] [--latch 0 4] [--seeds 0 1 2 3] [--permute]

One layer of 20 recurrent neurons trains on 400 sequences and is tested on 400 others. Inputs are spikes on two channels
for the values of a bit, and on `--distractors` channels at random with probability 1/2.
order: one event on each of two channels in 5 steps, which came first? memory: a bit in the first of 4 steps. xor: two
bits in 2 steps, whether they differ. delayed: two bits in the first and in the last of 4 steps, whether they differ.
--permute trains on permuted labels, a control. Each row is an accuracy by seed.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor, nn

from lightning_snn.methods import ExpectationPropagation, Progress
from lightning_snn.nn import RecurrentLIF

STEPS = {"order": 5, "memory": 4, "xor": 2, "delayed": 4}
SAMPLES, NEURONS = 400, 20
# batches, passes, iterations, damping
SCHEDULES = {"order": (8, 4, 8, 0.3), "memory": (8, 4, 8, 0.3), "xor": (8, 4, 8, 0.3), "delayed": (1, 1, 60, 0.1)}


def sequences(task: str, seed: int, steps: int, distractors: int = 0, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Return spikes `[T, B, 2 + distractors]` and classes `[B]` of a task."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(steps, samples, 2 + distractors)
    rows = torch.arange(samples)
    if task == "order":
        times = torch.rand(samples, steps, generator=generator).argsort(1)[:, :2].sort(1).values
        y = torch.randint(2, (samples,), generator=generator)
        x[times[:, 0], rows, y] = 1
        x[times[:, 1], rows, 1 - y] = 1
    else:
        bits = torch.randint(2, (2, samples), generator=generator)
        x[0, rows, bits[0]] = 1
        y = bits[0]
        if task != "memory":
            x[-1, rows, bits[1]] = 1
            y = bits[0] ^ bits[1]
    x[:, :, 2:] = (torch.rand(steps, samples, distractors, generator=generator) < 0.5).float()
    return x, y


def accuracy(task: str, seed: int, permute: bool, distractors: int, steps: int | None, **options: object) -> float:
    """Return the accuracy on new sequences after training with a seed."""
    steps = steps or STEPS[task]
    batches, passes, iterations, damping = SCHEDULES[task]
    x, y = sequences(task, 2 * seed, steps, distractors)
    if permute:
        y = y[torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))]
    test_x, test_y = sequences(task, 2 * seed + 1, steps, distractors)
    torch.manual_seed(seed)
    method = ExpectationPropagation(**{"iterations": iterations, "damping": damping, **options})
    network = method.prepare(
        nn.Sequential(nn.Linear(x.shape[2], NEURONS), RecurrentLIF(NEURONS), nn.Linear(NEURONS, 2))
    )
    optimizer = method.configure_optimizer(network)
    for step, batch in enumerate(list(torch.arange(SAMPLES).chunk(batches)) * passes):
        method.progress = Progress(step / batches, SAMPLES, step)
        optimizer.zero_grad()
        method.training_step(network, x[:, batch], y[batch]).objective.backward()
        optimizer.step()
    return (method.predict(network, test_x).mean.argmax(1) == test_y).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--latch", type=float, nargs="+", default=[0.0, 4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, help="time steps of a sequence, in place of those of the task")
    parser.add_argument("--distractors", type=int, default=0)
    parser.add_argument("--permute", action="store_true", help="train on permuted labels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for task in options.tasks:
        for latch in options.latch:
            found = []
            for seed in options.seeds:
                found.append(accuracy(task, seed, options.permute, options.distractors, options.steps, latch=latch))
                print(f"{task:<8} latch {latch:g}: {' '.join(format(each, '.3f') for each in found)}", flush=True)


if __name__ == "__main__":
    main()
