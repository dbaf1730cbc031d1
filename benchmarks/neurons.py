"""Cost of the neurons, and what the adaptive threshold remembers.

    python benchmarks/neurons.py speed [--json results.json] [--rounds 15] [--threads 1] [--compiled]
    python benchmarks/neurons.py memory [--json results.json] [--seeds 0 1 2] [--gaps 4 16 32 64] [--steps 400]

speed: a forward and backward pass of a scan over a sequence in float32. "by contract" is the generic scan of `Neuron`,
which runs the equations step by step. The Izhikevich neuron is the one of docs/extending.md. snntorch runs in a loop,
over `x.unbind(0)` and over `x[t]`, whose backward pass is slower. "noisy" is the scan under Gaussian noise in mode
"step". The table lists the fastest and the median call, the ratio to the fused LIF with numbers (median over
interleaved rounds), and the bytes that the forward pass saves for the backward pass, in units of the input. Rows "no
graph" run forward only. "rates" is rate-based backpropagation, with the derivatives of the rates of the spiking pass.
With --compiled, the neurons that loop over their equations run also by `nn.compile_steps`, next to the loop; this needs
a C++ compiler, and some minutes to compile.

memory: 2-32-2 networks, one hidden layer of LIF or AdaptiveLIF neurons with the same decay, trained by
SurrogateGradient on two events that are separated by a silent gap, with new sequences for every step of Adam (a cosine
to 0). "order": the event on channel 0 comes before that on channel 1, or after; with gap 0 this is the task of the
contract tests. The time of one event since the start determines the class, so no event has to be remembered. "match":
both events are on the same channel, or not. Channel and time of one event are independent of the class, so the first
event has to be remembered. The learning rate, and for AdaptiveLIF the decay and the strength of the adaptation, are
chosen for each task and gap on validation sequences, with another seed. The table lists test accuracies.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import snntorch
import torch
from _timing import compare, parser, show
from torch import Tensor, nn
from tqdm import tqdm

from lightning_snn import LIF, run
from lightning_snn.functional.estimators import IWST
from lightning_snn.methods import SurrogateGradient
from lightning_snn.methods.rate import rate_run
from lightning_snn.metrics.memory import saved_bytes
from lightning_snn.nn import IF, AdaptiveLIF, Neuron, SynapticLIF, compile_steps
from lightning_snn.nn.noise import SpikeNoise

SHAPES = [(16, 64, 32, 16, 16), (100, 128, 128)]
NOISE_VARIANCE = 0.25
COMPILED = ", compiled step"

WINDOW, CHANNELS, CLASSES, HIDDEN, BETA = 4, 2, 2, 32, 0.9
PAIRS, HELD_OUT_PAIRS = 64, 1000  # per training step, and of validation and test sequences
TUNING_SEED, VALIDATION_SEED, TEST_SEED = 100, 101, 102


def izhikevich() -> Neuron:
    """Return the neuron of docs/extending.md."""
    text = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Izhikevich" in block)
    namespace: dict[str, Any] = {"__name__": "extending"}
    exec(block, namespace)
    neuron: Neuron = namespace["Izhikevich"]()
    return neuron


class Contender(NamedTuple):
    """Layer and call to measure.

    Attributes:
        forward: returns the spikes `[T, B, ...]`.
        parameters: those of the layer, whose gradients are cleared, and which do not count as saved.
        graph: whether a backward pass follows.
    """

    forward: Callable[[], Tensor]
    parameters: tuple[Tensor, ...] = ()
    graph: bool = True


def contenders(x: Tensor, compiled: bool = False) -> dict[str, Contender]:
    """Return the scans of all neurons over `x [T, B, C, ...]`, which requires a gradient.

    Args:
        x: the input.
        compiled: whether to add those of compiled steps.
    """
    channels = x.shape[2]
    learned: dict[str, Any] = {"learn_beta": True, "learn_threshold": True, "channels": channels}
    plain, fitted, adaptive, synaptic_ours = LIF(), LIF(**learned), AdaptiveLIF(), SynapticLIF()
    adaptive_fitted = AdaptiveLIF(**learned, learn_rho=True, learn_strength=True)
    variance = torch.full_like(x, NOISE_VARIANCE).requires_grad_()
    noise = SpikeNoise(IWST(0.5), "step")
    current = x.detach()

    def fused(layer: Neuron) -> Contender:
        return Contender(lambda: layer.scan(x)[0], tuple(layer.parameters()))

    def by_contract(layer: Neuron) -> Contender:
        return Contender(lambda: Neuron.scan(layer, x)[0], tuple(layer.parameters()))

    def with_potentials(layer: Neuron) -> Callable[[], Tensor]:
        return lambda: layer.potentials(current, layer.scan(current)[0])[0]

    leaky = snntorch.Leaky(beta=BETA, spike_grad=snntorch.surrogate.atan())
    synaptic = snntorch.Synaptic(alpha=0.8, beta=BETA, spike_grad=snntorch.surrogate.atan())

    def snntorch_leaky(steps: Iterable[Tensor]) -> Tensor:
        membrane, spikes = torch.zeros_like(x[0]), []
        for step in steps:
            spike, membrane = leaky(step, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    def snntorch_synaptic() -> Tensor:
        synapse = membrane = torch.zeros_like(x[0])
        spikes = []
        for step in x.unbind(0):
            spike, synapse, membrane = synaptic(step, synapse, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    def noisy(layer: Neuron) -> Contender:
        return Contender(lambda: layer.noisy_scan(x, variance, noise)[0], tuple(layer.parameters()))

    def rates(layer: Neuron) -> Contender:
        return Contender(lambda: rate_run(layer, x), tuple(layer.parameters()))

    found = {
        "LIF fused": fused(plain),
        "LIF fused, learned per channel": fused(fitted),
        "LIF by contract": by_contract(plain),
        "LIF by contract, learned per channel": by_contract(fitted),
        "IF fused": fused(IF()),
        "AdaptiveLIF": fused(adaptive),
        "AdaptiveLIF, learned per channel": fused(adaptive_fitted),
        "SynapticLIF": fused(synaptic_ours),
        "Izhikevich": fused(izhikevich()),
        "snntorch Leaky": Contender(lambda: snntorch_leaky(x.unbind(0))),
        "snntorch Leaky, x[t]": Contender(lambda: snntorch_leaky(x[t] for t in range(len(x)))),
        "snntorch Synaptic": Contender(snntorch_synaptic),
        "noisy LIF fused": noisy(plain),
        "noisy LIF by contract": Contender(lambda: Neuron.noisy_scan(plain, x, variance, noise)[0]),
        "noisy AdaptiveLIF": noisy(adaptive),
        "LIF fused, no graph": Contender(lambda: plain.scan(current)[0], graph=False),
        "LIF fused and potentials, no graph": Contender(with_potentials(plain), graph=False),
        "AdaptiveLIF, no graph": Contender(lambda: adaptive.scan(current)[0], graph=False),
        "AdaptiveLIF and potentials, no graph": Contender(with_potentials(adaptive), graph=False),
        "rates of LIF in closed form": rates(plain),
        "rates of AdaptiveLIF": rates(adaptive),
        "rates of AdaptiveLIF, learned per channel": rates(adaptive_fitted),
    }
    if not compiled:
        return found
    layers = nn.ModuleDict({"plain": adaptive, "learned": adaptive_fitted, "synaptic": synaptic_ours})
    made = copy.deepcopy(layers)
    compile_steps(made)
    steps = {
        "AdaptiveLIF": fused(made["plain"]),
        "AdaptiveLIF, learned per channel": fused(made["learned"]),
        "SynapticLIF": fused(made["synaptic"]),
        "noisy AdaptiveLIF": noisy(made["plain"]),
        "rates of AdaptiveLIF": rates(made["plain"]),
        "rates of AdaptiveLIF, learned per channel": rates(made["learned"]),
    }
    return found | {f"{name}{COMPILED}": contender for name, contender in steps.items()}


def measure(shape: tuple[int, ...], rounds: int, compiled: bool = False) -> list[dict[str, Any]]:
    """Return fastest and median call, ratio to the fused LIF, and saved inputs of every contender."""
    torch.manual_seed(0)
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    fastest: dict[str, float] = {}

    def timed(name: str, contender: Contender) -> Callable[[], None]:
        def call() -> None:
            for tensor in (x, *contender.parameters):
                tensor.grad = None
            start = time.perf_counter()
            if contender.graph:
                contender.forward().backward(grad)
            else:
                with torch.no_grad():
                    contender.forward()
            fastest[name] = min(fastest.get(name, float("inf")), 1e3 * (time.perf_counter() - start))

        return call

    found = contenders(x, compiled)
    calls = {name: timed(name, contender) for name, contender in found.items()}
    with tqdm(total=(rounds + 2) * len(calls), desc="x".join(map(str, shape)), leave=False) as bar:

        def reported(call: Callable[[], None]) -> Callable[[], None]:
            return lambda: (call(), bar.update())[0]

        ours = {"ours": reported(calls.pop("LIF fused"))}
        times = compare(ours | {name: reported(call) for name, call in calls.items()}, rounds)
    results = []
    for name, contender in found.items():
        key = "ours" if name == "LIF fused" else name
        saved = saved_bytes(contender.forward, contender.parameters) / (x.numel() * x.element_size())
        results.append(
            {
                "shape": list(shape),
                "neuron": name,
                "fastest ms": fastest[name],
                "median ms": times["ms"][key],
                "ratio": times["ratio"][key],
                "saved inputs": saved if contender.graph else None,
            }
        )
    return results


def speed(options: argparse.Namespace) -> None:
    results: list[dict[str, Any]] = []
    for threads, shape in product(options.threads, SHAPES):
        torch.set_num_threads(threads)
        results += [{"threads": threads, **row} for row in measure(shape, options.rounds, options.compiled)]
    rows = [
        [
            str(row["threads"]),
            "x".join(map(str, row["shape"])),
            row["neuron"],
            f"{row['fastest ms']:.1f}",
            f"{row['median ms']:.1f}",
            f"{row['ratio']:.2f}",
            "" if row["saved inputs"] is None else f"{row['saved inputs']:.1f}",
        ]
        for row in results
    ]
    show(
        ["threads", "T, B, ...", "neuron", "fastest ms", "median ms", "/ LIF fused", "saved"],
        rows,
        results,
        options.json,
    )
    ms = {(row["threads"], tuple(row["shape"]), row["neuron"]): row["fastest ms"] for row in results}
    for threads in options.threads:
        names = ("LIF fused", "LIF by contract", "snntorch Leaky", "snntorch Leaky, x[t]")
        fused, contract, loop, indexed = (ms[threads, SHAPES[0], name] for name in names)
        print(
            f"{threads} threads, fastest calls: LIF by contract takes {contract / fused:.2f} x the fused LIF "
            f"(at most 2.2), {contract / loop:.2f} x snntorch's loop and {contract / indexed:.2f} x over x[t] "
            "(at most 0.5)"
        )
        for name in sorted({name for _, _, name in ms if name.endswith(COMPILED)}):
            pairs = [(ms[threads, shape, name], ms[threads, shape, name.removesuffix(COMPILED)]) for shape in SHAPES]
            faster = " and ".join(f"{loop / step:.2f}" for step, loop in pairs)
            print(f"{threads} threads, fastest calls: {name} is {faster} x faster than the loop")


def order_of_events(pairs: int, generator: torch.Generator, gap: int = 0) -> tuple[Tensor, Tensor]:
    """Return sequences `[T, 2 * pairs, 2]` and classes: the event on channel 0 is before that on channel 1, or after.

    Each event is within a window of 4 steps, and `gap` steps lie between the windows. Every sequence of class 0 has its
    time reversal in class 1.
    """
    x, first, second = _silence(pairs, generator, gap)
    sequences = torch.arange(pairs)
    x[first, sequences, 0] += 1
    x[second, sequences, 1] += 1
    shuffled = torch.randperm(2 * pairs, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(pairs)
    return torch.cat([x, x.flip(0)], 1)[:, shuffled], labels[shuffled]


def matching_events(pairs: int, generator: torch.Generator, gap: int = 0) -> tuple[Tensor, Tensor]:
    """Return sequences `[T, 2 * pairs, 2]` and classes: both events are on one channel, or on two.

    The windows are those of `order_of_events`. Channel and time of one event are independent of the class.
    """
    x, first, second = _silence(2 * pairs, generator, gap)
    sequences = torch.arange(2 * pairs)
    labels = sequences % CLASSES
    channel = torch.randint(0, CHANNELS, (2 * pairs,), generator=generator)
    x[first, sequences, channel] += 1
    x[second, sequences, channel ^ labels] += 1
    return x, labels


def _silence(number: int, generator: torch.Generator, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sequences without events, and the times of a first and a second event."""
    steps = 2 * WINDOW + gap
    x = 0.1 * torch.rand(steps, number, CHANNELS, generator=generator)
    first = torch.randint(0, WINDOW, (number,), generator=generator)
    return x, first, torch.randint(WINDOW + gap, steps, (number,), generator=generator)


Sequences = Callable[[int, torch.Generator, int], tuple[Tensor, Tensor]]
TASKS: dict[str, Sequences] = {"order": order_of_events, "match": matching_events}


class Settings(NamedTuple):
    """Hyper-parameters, chosen on validation sequences.

    Attributes:
        learning_rate: of Adam.
        rho: decay of the adaptation; unused by LIF.
        strength: of the adaptation; unused by LIF.
    """

    learning_rate: float
    rho: float = 0.0
    strength: float = 0.0


# as many for LIF as for AdaptiveLIF
LIF_LEARNING_RATES = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.02, 0.04)
LEARNING_RATES, DECAYS, STRENGTHS = (0.005, 0.02), (0.97, 0.99), (0.2, 1.0)
CHOICES: dict[str, list[Settings]] = {
    "LIF": [Settings(rate) for rate in LIF_LEARNING_RATES],
    "AdaptiveLIF": [Settings(*each) for each in product(LEARNING_RATES, DECAYS, STRENGTHS)],
}


class Networks(nn.Module):
    """K independent networks 2-32-2 whose neurons are scanned as one layer: `[T*B, K * 2]` to `[T*B, 2, K]`.

    Args:
        neuron: "LIF" or "AdaptiveLIF".
        settings: of each network.
        seeds: of the initial weights of each network.
    """

    def __init__(self, neuron: str, settings: list[Settings], seeds: list[int]) -> None:
        super().__init__()
        self.inputs, self.readouts = nn.ModuleList(), nn.ModuleList()
        for seed in seeds:
            torch.manual_seed(seed)
            self.inputs.append(nn.Linear(CHANNELS, HIDDEN))
            self.readouts.append(nn.Linear(HIDDEN, CLASSES))
        rho, strength = (
            [value for value in values for _ in range(HIDDEN)]
            for values in zip(*((each.rho, each.strength) for each in settings), strict=True)
        )
        self.neurons = LIF(BETA) if neuron == "LIF" else AdaptiveLIF(BETA, rho=rho, strength=strength)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(CHANNELS, -1)
        current = torch.cat([layer(part) for layer, part in zip(self.inputs, parts, strict=True)], -1)
        spikes = self.neurons(current).split(HIDDEN, -1)
        return torch.stack([layer(part) for layer, part in zip(self.readouts, spikes, strict=True)], -1)


def batch(sequences: Sequences, pairs: int, generators: list[torch.Generator], gap: int) -> tuple[Tensor, Tensor]:
    """Return inputs `[T, B, K * 2]` and classes `[B, K]` of K networks."""
    x, y = zip(*(sequences(pairs, generator, gap) for generator in generators), strict=True)
    return torch.cat(x, -1), torch.stack(y, -1)


def accuracies(
    task: str, gap: int, neuron: str, settings: list[Settings], seeds: list[int], test_seed: int, steps: int
) -> list[float]:
    """Train a network for each of the settings and seeds, and return their accuracies on new sequences."""
    sequences, networks, method = TASKS[task], Networks(neuron, settings, seeds), SurrogateGradient()
    optimizer = torch.optim.Adam(
        [
            {"params": [*one.parameters(), *other.parameters()], "lr": each.learning_rate}
            for one, other, each in zip(networks.inputs, networks.readouts, settings, strict=True)
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(steps):
        optimizer.zero_grad()
        # the mean of the losses: Adam's steps do not depend on the scale of a loss
        method.training_step(networks, *batch(sequences, PAIRS, generators, gap)).objective.backward()
        optimizer.step()
        schedule.step()
    x, y = batch(sequences, HELD_OUT_PAIRS, [torch.Generator().manual_seed(test_seed) for _ in seeds], gap)
    with torch.no_grad():
        predicted = run(networks, x).mean(0).argmax(1)
    return (predicted == y).float().mean(0).tolist()


def recall(task: str, gap: int, neuron: str, seeds: list[int], steps: int) -> dict[str, Any]:
    """Return the test accuracies of a neuron over seeds, with the settings that are best on validation sequences."""
    choices = CHOICES[neuron]
    validation = accuracies(task, gap, neuron, choices, [TUNING_SEED] * len(choices), VALIDATION_SEED, steps)
    chosen = choices[validation.index(max(validation))]
    scores = accuracies(task, gap, neuron, [chosen] * len(seeds), seeds, TEST_SEED, steps)
    return {
        "task": task,
        "gap": gap,
        "T": 2 * WINDOW + gap,
        "neuron": neuron,
        "accuracy": statistics.mean(scores),
        "accuracies": scores,
        **chosen._asdict(),
        "validation": [{**each._asdict(), "accuracy": score} for each, score in zip(choices, validation, strict=True)],
    }


def memory(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads[0])
    jobs = [("order", 0), ("order", max(options.gaps)), *(("match", gap) for gap in options.gaps)]
    results = [
        recall(task, gap, neuron, options.seeds, options.steps)
        for (task, gap), neuron in tqdm(list(product(jobs, CHOICES)), desc="tasks and neurons")
    ]
    rows = [
        [
            row["task"],
            str(row["gap"]),
            str(row["T"]),
            row["neuron"],
            f"{row['accuracy']:.3f}",
            f"{min(row['accuracies']):.3f}-{max(row['accuracies']):.3f}",
            f"{row['learning_rate']:g}",
            f"{row['rho']:g}, {row['strength']:g}" if row["strength"] else "",
        ]
        for row in results
    ]
    show(["task", "gap", "T", "neuron", "accuracy", "range", "lr", "rho, strength"], rows, results, options.json)


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__, threads=(1,))
    made.add_argument("part", choices=["speed", "memory"])
    made.add_argument("--gaps", type=int, nargs="+", default=[4, 16, 32, 64])
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=400, help="optimizer steps of a training")
    made.add_argument("--compiled", action="store_true", help="speed: run compiled steps, too")
    options = made.parse_args(arguments)
    {"speed": speed, "memory": memory}[options.part](options)


if __name__ == "__main__":
    main()
