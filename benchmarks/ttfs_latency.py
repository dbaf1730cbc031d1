"""Latency of time-to-first-spike networks: predicted and measured accuracy of short windows, and first events as input.

    python benchmarks/ttfs_latency.py depths --mnist mnist.npz [--seeds 0 1 2] [--depths 2 4 8] [--figure latency.png]
    python benchmarks/ttfs_latency.py events --nmnist NMNIST [--seeds 0 1 2] [--windows 20 35 50 105 315]

depths: MLPs of 2, 4 and 8 hidden layers of 128 neurons on the 60,000 digits, 3 epochs, batch 128, Adam with a rate that
decays from 1e-3 to 1e-4. `latency_report` chooses windows on 10,000 training images and reports accuracies of the
10,000 test images: predicted, measured, and after fine-tuning under the windows on 30,000 training images, each once
(5e-4 to 1e-4); for time steps predicted and measured. Controls: the sum of the noise without gains, and first-order
residuals, which pass the clipped parts of all layers through the network that is not clipped.
events: all recordings of N-MNIST in the first milliseconds, 17 x 17 x 2 cells in frames of 1 ms, five folds, an MLP
578-128-10, 25 epochs, batch 80, Adam with a rate that decays from 2e-3 to 2e-4. Inputs: first event times; the same
times permuted among the cells of a recording that have events; first events of several windows as channels; and numbers
of events divided by 3. In float64, with absolute spike times, the largest difference of the logits to
the ReLU network is reported. No setting was chosen on tested data.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from tqdm import tqdm

from lightning_snn import figures
from lightning_snn.data.frames import frame_events
from lightning_snn.data.image_files import Images, read_mnist
from lightning_snn.data.nmnist import SENSOR_SIZE, read_nmnist
from lightning_snn.functional.linear_response import accuracy_under_noise
from lightning_snn.methods.ttfs import LatencyRow, TTFSNetwork, calibrate, from_relu, latency_report
from lightning_snn.methods.ttfs.clipping import sequential_noise
from lightning_snn.methods.ttfs.observed import ObservedActivations, observed_activations
from lightning_snn.nn import FirstEventEncoder

Row = dict[str, Any]

FACTORS, TUNED = (2, 6, 12), (1, 4, 8, 16)
STEPS = (2, 4, 5, 6, 8, 12, 16, 24, 32)
WIDTH, BATCH, EPOCHS, RATES = 128, 128, 3, (1e-3, 1e-4)
TUNING_RATES, TUNING, CALIBRATION = (5e-4, 1e-4), 30_000, 10_000
FOLDS, CELLS, EVENT_EPOCHS, EVENT_BATCH, EVENT_RATES = 5, (17, 17), 25, 80, (2e-3, 2e-4)
# equal parts of a window that become channels
PARTS = {20: (2, 4), 35: (5,), 50: (2, 5), 105: (3, 7), 315: (3, 9)}


def mlp(inputs: int, depth: int) -> nn.Sequential:
    """Return linear layers with ReLU, `depth` of them hidden, He-initialized; biases are 0."""
    layers: list[nn.Module] = []
    for size in (inputs, *[WIDTH] * (depth - 1)):
        layers += [nn.Linear(size, WIDTH), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    layers.append(nn.Linear(WIDTH, 10))
    nn.init.xavier_normal_(layers[-1].weight)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def train(network: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int, rates: tuple[float, float]) -> None:
    """Train with Adam, whose rate decays exponentially from the first to the second of `rates`."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), rates[0])
    steps = epochs * -(-len(x) // batch)
    schedule = lr_scheduler.ExponentialLR(optimizer, (rates[1] / rates[0]) ** (1 / steps))
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()


def batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(1000), y.split(1000), strict=True))


@torch.no_grad()
def first_order_logits(relu: nn.Sequential, windows: list[float], x: Tensor) -> Tensor:
    """Return logits plus the parts that windows clip from each layer, passed on by the network that is not clipped."""
    change = torch.zeros(len(x), x.shape[1])
    places = iter(windows)
    for layer in relu:
        if isinstance(layer, nn.Linear):
            change = change @ layer.weight.T
            x = layer(x)
        else:
            active = x > 0
            x = layer(x)
            change = change * active + (x.clamp(max=next(places)) - x)
    return x + change


def controls(
    relu: nn.Sequential, activations: ObservedActivations, row: LatencyRow, x: Tensor, y: Tensor, logits: Tensor
) -> dict[str, float]:
    """Return what two simpler predictions say about a row: noise and accuracy."""
    windows = activations.largest.clone()
    windows[activations.free] = torch.tensor(list(row.windows.values()), dtype=torch.float64)
    alone = sequential_noise(activations.layers, windows, sequential=False)[1].sum().clamp(min=0).item()
    first = first_order_logits(relu, list(row.windows.values()), x)
    return {
        "noise without gains": alone,
        "accuracy without gains": accuracy_under_noise(logits, y, alone).item(),
        "first-order accuracy": (first.argmax(1) == y).double().mean().item(),
    }


def by_depth(train_set: Images, test_set: Images, depth: int, seed: int, fine_tune: bool, epochs: int) -> list[Row]:
    """Train a network and return the rows of its report."""
    torch.manual_seed(seed)
    (x, y), (test_x, test_y) = (
        (torch.from_numpy(part.images).flatten(1).float() / 255, torch.from_numpy(part.labels).long())
        for part in (train_set, test_set)
    )
    relu = mlp(x.shape[1], depth)
    train(relu, x, y, epochs, BATCH, RATES)
    network = from_relu(relu, 0.0, 1.0, x[:1])
    known, tested = batches(x[:CALIBRATION], y[:CALIBRATION]), batches(test_x, test_y)

    def tune(trial: nn.Module) -> None:
        torch.manual_seed(seed)
        train(trial, x[:TUNING], y[:TUNING], 1, BATCH, TUNING_RATES)

    options: dict[str, Any] = {"evaluation": tested, "measure": True}
    report = latency_report(network, known, factors=TUNED, fine_tune=tune if fine_tune else None, **options)
    others = latency_report(network, known, factors=FACTORS, steps=STEPS, **options)
    activations = observed_activations(network, known, (0.5,))
    with torch.no_grad():
        logits = relu(test_x)
    rows = []
    for row in (*report.by_factor, *others.by_factor, *others.by_steps):
        simpler = {} if row.steps else controls(relu, activations, row, test_x, test_y, logits)
        rows.append({"depth": depth, "seed": seed, "full": report.accuracy, **entries(row), **simpler})
    print(f"\ndepth {depth}, seed {seed}\n{report}\n\n{others}", flush=True)
    return rows


def entries(row: LatencyRow) -> Row:
    names = ("rule", "factor", "steps", "latency", "predicted_noise", "predicted_accuracy")
    names += ("measured_noise", "measured_accuracy", "fine_tuned_accuracy")
    return {name: getattr(row, name) for name in names} | {"windows": list(row.windows.values())}


def show_depths(rows: list[Row]) -> None:
    """Print means over seeds: accuracies in %, noise of the logits."""
    columns = ("predicted_noise", "measured_noise", "predicted_accuracy", "measured_accuracy", "fine_tuned_accuracy")
    columns += ("noise without gains", "accuracy without gains", "first-order accuracy")
    print(f"\n{'depth':>5}  {'windows':<12}  {'k':>3}  {'steps':>5}  {'latency':>7}  " + "  ".join(columns))
    keys = dict.fromkeys((row["depth"], row["rule"], row["factor"], row["steps"]) for row in rows)
    for key in sorted(keys, key=lambda key: (key[0], key[3] or 0, key[2])):
        same = [row for row in rows if (row["depth"], row["rule"], row["factor"], row["steps"]) == key]
        depth, rule, factor, steps = key
        numbers = []
        for column in columns:
            values = [row[column] for row in same if row.get(column) is not None]
            scale = 1 if "noise" in column else 100
            numbers.append(
                f"{scale * statistics.mean(values):>{len(column)}.{3 if scale == 1 else 2}f}"
                if values
                else " " * len(column)
            )
        latency = statistics.mean(row["latency"] for row in same)
        print(f"{depth:>5}  {rule:<12}  {factor:>3}  {steps or '':>5}  {latency:>7.3g}  " + "  ".join(numbers))
    for depth in dict.fromkeys(row["depth"] for row in rows):
        full = statistics.mean(row["full"] for row in rows if row["depth"] == depth)
        print(f"depth {depth}: {100 * full:.2f} % with windows as long as the largest activations")


def verdicts(rows: list[Row]) -> Iterator[str]:
    """Yield what holds of the predictions down to an eighth of the largest windows, over all depths and seeds."""
    scaled = [row for row in rows if row["steps"] is None and 1 < row["factor"] <= 8]
    plain = [row for row in scaled if row["rule"] == "largest / k"]
    ratios = [row["predicted_noise"] / row["measured_noise"] for row in plain]
    yield f"predicted / measured noise of the logits, k from 2 to 8: {min(ratios):.2f} to {max(ratios):.2f}"
    for name in ("predicted_accuracy", "accuracy without gains", "first-order accuracy"):
        worst = max(plain, key=lambda row: abs(row[name] - row["measured_accuracy"]))
        error = 100 * (worst[name] - worst["measured_accuracy"])
        yield f"largest error of {name}: {error:+.1f} points (depth {worst['depth']}, k = {worst['factor']})"
    for key in sorted(dict.fromkeys((row["depth"], row["factor"]) for row in scaled)):
        gains = [
            100 * (better["measured_accuracy"] - row["measured_accuracy"])
            for row in plain
            for better in scaled
            if (row["depth"], row["factor"]) == key
            and better["rule"] != row["rule"]
            and all(better[name] == row[name] for name in ("depth", "factor", "seed"))
        ]
        mean, least = statistics.mean(gains), min(gains)
        yield f"optimized - largest / {key[1]}, depth {key[0]}: {mean:+.2f} points, at least {least:+.2f}"


def depths(options: argparse.Namespace) -> list[Row]:
    train_set, test_set = (
        Images(part.images[: options.limit], part.labels[: options.limit]) for part in read_mnist(options.mnist)
    )
    rows: list[Row] = []
    for seed in options.seeds:
        for depth in options.depths:
            rows += by_depth(train_set, test_set, depth, seed, not options.no_fine_tuning, options.epochs or EPOCHS)
            write(rows, options.json)
    show_depths(rows)
    print("\n".join(verdicts(rows)))
    return rows


def recordings(root: str, duration: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of events in frames of 1 ms, uint8 `[N, duration, 2 * 17 * 17]`, and the digits."""
    frames, labels = [], []
    for path in tqdm(sorted(Path(root).glob("T*/*/*.bin")), "reading"):
        events = read_nmnist(path)
        covered = events.select(events.t < 1000 * duration)
        counts = frame_events(
            *covered, time_steps=duration, sensor_size=SENSOR_SIZE, size=CELLS, start=0, duration=1000 * duration
        )
        frames.append(counts.reshape(duration, -1))
        labels.append(int(path.parent.name))
    if not frames:
        raise FileNotFoundError(f"Expected option --nmnist to be a folder with Train/<digit>/*.bin, but got {root}")
    return torch.from_numpy(np.stack(frames)), torch.tensor(labels)


def first_events(frames: Tensor, parts: int) -> Tensor:
    encoder = FirstEventEncoder(frames.shape[1] // parts)
    return torch.cat([encoder(part.transpose(0, 1))[0] for part in frames.split(100)])


def permuted(times: Tensor, seed: int) -> Tensor:
    """Permute the times of each recording among the cells that have events."""
    generator = torch.Generator().manual_seed(seed)
    result = times.clone()
    for row in result:
        active = row.nonzero()[:, 0]
        row[active] = row[active[torch.randperm(len(active), generator=generator)]]
    return result


def event_inputs(frames: Tensor, window: int) -> dict[str, Tensor]:
    """Return the inputs `[N, features]` to compare, from the first milliseconds."""
    frames = frames[:, :window]
    counts = frames.sum(1, dtype=torch.float32)
    first = first_events(frames, 1)
    several = {f"first events, {parts} windows": first_events(frames, parts) for parts in PARTS.get(window, ())}
    return {
        "first events": first,
        "times permuted": permuted(first, 0),
        **several,
        "events / 3": counts / 3,
    }


def by_input(x: Tensor, y: Tensor, seed: int, epochs: int) -> tuple[list[float], float]:
    """Return the accuracy of each fold, and the largest difference of the time path to the ReLU network."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    # equally many recordings of each digit in every fold
    order = order[y[order].argsort(stable=True)]
    accuracies, difference = [], 0.0
    for fold in range(FOLDS):
        held_out = torch.zeros(len(y), dtype=torch.bool)
        held_out[order[fold::FOLDS]] = True
        torch.manual_seed(FOLDS * seed + fold)
        relu = mlp(x.shape[1], 1)
        train(relu, x[~held_out], y[~held_out], epochs, EVENT_BATCH, EVENT_RATES)
        with torch.no_grad():
            logits = relu(x[held_out])
            accuracies.append((logits.argmax(1) == y[held_out]).double().mean().item())
            if x.max() <= 1:
                wide, tested = relu.double(), x[held_out].double()
                spiking = time_path(wide, tested)
                difference = max(difference, (spiking(tested) - wide(tested)).abs().max().item())
    return accuracies, difference


def time_path(relu: nn.Sequential, x: Tensor) -> TTFSNetwork:
    network = from_relu(relu, 0.0, 1.0, x[:1])
    calibrate(network, x)
    for _, neurons in network.spiking:
        neurons.time_domain = True
    return network


def events(options: argparse.Namespace) -> list[Row]:
    frames, labels = recordings(options.nmnist, max(options.windows))
    rows: list[Row] = []
    print(f"{'ms':>4}  {'input':<26}  {'accuracy':>8}  {'by seed':<20}  {'spikes':>6}  {'events':>6}  time path - ReLU")
    for window in options.windows:
        number = frames[:, :window].sum(dtype=torch.float64).item() / len(frames)
        for name, x in event_inputs(frames, window).items():
            found = [by_input(x, labels, seed, options.epochs or EVENT_EPOCHS) for seed in options.seeds]
            means = [100 * statistics.mean(accuracies) for accuracies, _ in found]
            row: Row = {"window": window, "input": name, "accuracy": statistics.mean(means), "by seed": means}
            row |= {"spikes": (x > 0).sum(1).double().mean().item(), "events": number}
            row["difference"] = max(difference for _, difference in found)
            rows.append(row)
            print(
                f"{window:>4}  {name:<26}  {row['accuracy']:>8.2f}  {' '.join(f'{mean:.2f}' for mean in means):<20}  "
                f"{row['spikes']:>6.0f}  {number:>6.0f}  {row['difference']:.1e}",
                flush=True,
            )
            write(rows, options.json)
    return rows


def write(rows: list[Row], path: str | None) -> None:
    if path:
        Path(path).write_text(json.dumps(rows, indent=2))


def draw(rows: list[Row], path: str) -> None:
    """Draw accuracy by latency of the deepest network, mean of the seeds."""
    depth = max(row["depth"] for row in rows)
    rows = [row for row in rows if row["depth"] == depth and row["steps"] is None]
    curves: dict[str, dict[str, list[float]]] = {}
    for rule in dict.fromkeys(row["rule"] for row in rows):
        factors = sorted({row["factor"] for row in rows if row["rule"] == rule})
        chosen = [[row for row in rows if (row["rule"], row["factor"]) == (rule, factor)] for factor in factors]
        curves[rule] = {"latency": [statistics.mean(row["latency"] for row in same) for same in chosen]}
        for name in ("predicted", "measured", "fine_tuned"):
            values = [[row[f"{name}_accuracy"] for row in same] for same in chosen]
            means = [math.nan if None in each else statistics.mean(each) for each in values]
            if not all(map(math.isnan, means)):
                curves[rule][name.replace("_", "-")] = means
    figures.save(figures.accuracy_by_latency(curves), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("depths")
    command.add_argument("--mnist", metavar="FILE", required=True, help="an .npz file, or torchvision's folder")
    command.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8], help="hidden layers")
    command.add_argument("--no-fine-tuning", action="store_true")
    command.add_argument("--limit", type=int, help="number of images to use of each part")
    command.add_argument("--figure", metavar="FILE", help="draw the deepest network's accuracy by latency")
    command = commands.add_parser("events")
    command.add_argument("--nmnist", metavar="FOLDER", required=True, help="the folder that holds Train and Test")
    command.add_argument("--windows", type=int, nargs="+", default=[20, 35, 50, 105, 315], help="in milliseconds")
    for command in commands.choices.values():
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--epochs", type=int, help=f"by default {EPOCHS}, and {EVENT_EPOCHS} for events")
        command.add_argument("--json", metavar="FILE", help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = depths(options) if options.command == "depths" else events(options)
    if options.command == "depths" and options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
