"""Uncertainty of spiking networks on digits, and on photographs and scrambled digits that they were not trained on.

    python benchmarks/uncertainty.py --mnist mnist.npz --cifar cifar10.npz [--seeds 0 1 2] [--output DIR]

The same network, 784-256-256-10 LIF neurons over T = 4 steps of the standardized image, is trained on MNIST once by
surrogate gradients and once as a spiking Bayesian network, each in a stock Trainer. Each is evaluated on

- the 10,000 test digits: accuracy, NLL, ECE (15 bins) and the area under the risk-coverage curve (AURC), for errors of
  0 and 1 ranked by predictive entropy H or by mutual information I;
- the test images of CIFAR-10: gray (0.299 R + 0.587 G + 0.114 B), the central 28 x 28 pixels;
- the scrambled test digits: the pixels of each image in a different random order, drawn from a fixed seed.

The AUROC measures how well H or I separates the last two sets from the first. The Bayesian network predicts in two
ways: with its posterior mean, one deterministic run that has no I, and with K samples. `--output` receives
`uncertainty.json`, the risk-coverage curves (risks averaged over the seeds), and a histogram figure of each uncertainty
(all seeds).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _timing import show
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from lightning_snn import SpikingModule, figures
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import CIFAR10, MNIST
from lightning_snn.data.batches import LoadedBatch
from lightning_snn.methods import Method, Prediction, SpikingBayes, SurrogateGradient
from lightning_snn.metrics.functional import (
    area_under_risk_coverage,
    expected_calibration_error,
    negative_log_likelihood,
    ood_auroc,
    risk_coverage,
)
from lightning_snn.networks import MLP

T, HIDDEN, BATCH = 4, (256, 256), 128
LEARNING_RATE = 1e-3  # of both networks; 2e-3 makes the surrogate-gradient network worse
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # of the training digits
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SCRAMBLING_SEED = 0

# Chosen on validation digits, scrambled digits and 1/f noise. A larger kl_weight separates unknown images better. K
# samples fit the digits better than the posterior mean once the mean is overconfident: more than 6 epochs at 0.1.
POSTERIOR = {"lam": 1.0, "kl_weight": 0.1, "kappa": 0.5, "gain": 1.0, "prior_scale": 1.0}
MEASURES = {"H": "predictive entropy [nats]", "I": "mutual information [nats]"}


def train(method: Method, data: MNIST, seed: int, epochs: int) -> tuple[SpikingModule, float]:
    """Return the trained network, in evaluation mode, and the CPU seconds of the training."""
    seed_everything(seed, verbose=False)
    module = SpikingModule(
        MLP(784, 10, HIDDEN), method, num_classes=10, learning_rate=LEARNING_RATE, lr_scheduler="cosine"
    )
    start = time.process_time()
    Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0
    ).fit(module, data)
    return module.eval(), time.process_time() - start


@torch.no_grad()
def predict(module: SpikingModule, data: MNIST, images: Tensor) -> Prediction:
    """Return the prediction for images `[N, 1, 28, 28]`, preprocessed like the training data without augmentation."""
    parts = []
    for batch in images.split(500):
        x, _ = data.on_after_batch_transfer(LoadedBatch(batch[:, None], torch.zeros(len(batch), dtype=torch.int64)), 0)
        parts.append(module.method.predict(module.network, x.to(module.device)))
    samples = None if parts[0].samples is None else torch.cat([part.samples for part in parts], dim=1).cpu()
    return Prediction(torch.cat([part.mean for part in parts]).cpu(), None, samples)


@dataclass
class Evaluation:
    """Predictions of a network for the `digits` and for each set of images that it was not trained on."""

    predictions: dict[str, Prediction]
    targets: Tensor

    @property
    def errors(self) -> Tensor:
        """Errors of the prediction, True for each digit that it gets wrong, `[N]`."""
        return self.predictions["digits"].mean.argmax(1) != self.targets

    @property
    def uncertainties(self) -> dict[str, dict[str, Tensor]]:
        """Uncertainties of each set of images, `[N]` each, for all `MEASURES` that the predictions have."""
        found = {"H": {name: prediction.predictive_entropy for name, prediction in self.predictions.items()}}
        if self.predictions["digits"].samples is not None:
            found["I"] = {name: prediction.mutual_information for name, prediction in self.predictions.items()}
        return found

    def scores(self) -> dict[str, float]:
        """Compute the scores on the digits, and how well each measure separates the other images from them."""
        digits = self.predictions["digits"].mean
        scores = {
            "accuracy": 1 - self.errors.double().mean(),
            "NLL": negative_log_likelihood(digits, self.targets),
            "ECE": expected_calibration_error(digits, self.targets, n_bins=15),
        }
        for measure, values in self.uncertainties.items():
            known = values.pop("digits")
            scores[f"AURC {measure}"] = area_under_risk_coverage(known, self.errors)
            scores |= {f"AUROC {name} {measure}": ood_auroc(known, unknown) for name, unknown in values.items()}
        return {name: score.item() for name, score in scores.items()}


def gray_centers(images: Tensor) -> Tensor:
    """Return the central 28 x 28 pixels of `[N, 3, 32, 32]` uint8 in gray, `[N, 1, 28, 28]` uint8."""
    gray = torch.einsum("nchw,c->nhw", images[:, :, 2:30, 2:30].float(), torch.tensor(LUMA))
    return gray.round().to(torch.uint8)[:, None]


def scrambled(images: Tensor, seed: int) -> Tensor:
    """Shuffle the pixels of each image in a different order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(images), images[0].numel(), generator=generator).argsort(dim=1)
    return images.flatten(1).gather(1, order).view_as(images)


def test_images(data: Any) -> tuple[Tensor, Tensor]:
    """Return all test images `[N, C, H, W]` and labels `[N]` of a data module."""
    data.setup()
    return torch.as_tensor(data.test_set.frames[:, 0]), data.test_set.labels


def average(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean of each score over the seeds for every predictor."""
    means = []
    for name in dict.fromkeys(result["predictor"] for result in results):
        runs = [result for result in results if result["predictor"] == name]
        scores = [key for key in runs[0] if key not in ("seed", "predictor")]
        means.append({"seed": "mean", "predictor": name} | {key: fmean(run[key] for run in runs) for key in scores})
    return means


def draw(evaluations: dict[str, list[Evaluation]], folder: Path) -> None:
    """Draw risk-coverage curves, averaged over the seeds, and a histogram for every predictor and measure."""
    curves = {}
    for name, seeds in evaluations.items():
        measured = [each.uncertainties for each in seeds]
        for measure, meaning in MEASURES.items():
            if measure not in measured[0]:
                continue
            ranked = [
                risk_coverage(values[measure]["digits"], each.errors)
                for values, each in zip(measured, seeds, strict=True)
            ]
            curves[f"{name}, {measure}"] = ranked[0][0], torch.stack([risk for _, risk in ranked]).mean(0)
            groups = {
                group: torch.cat([values[measure][group] for values in measured]) for group in measured[0][measure]
            }
            figure = figures.uncertainty_histograms(groups, f"{meaning}, {name}")
            figures.save(figure, folder / f"{measure} {name}.png".replace(" ", "_").replace("=", ""))
    figures.save(figures.risk_coverage_curve(curves), folder / "risk_coverage.png")


def main(arguments: list[str] | None = None) -> None:
    keep_freed_memory()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mnist", required=True, help="the .npz file or folder of MNIST")
    options.add_argument("--cifar", required=True, help="the .npz file or folder of CIFAR-10")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--samples", type=int, default=16, help="K")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--output", type=Path, default=Path("uncertainty"), help="folder of the results")
    chosen = options.parse_args(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(chosen.threads)

    data = MNIST(chosen.mnist, time_steps=T, mean=[PIXEL_MEAN], std=[PIXEL_STD], batch_size=BATCH)
    digits, targets = test_images(data)
    photos, _ = test_images(CIFAR10(chosen.cifar))
    images = {"digits": digits, "photos": gray_centers(photos), "scrambled": scrambled(digits, SCRAMBLING_SEED)}

    results: list[dict[str, Any]] = []
    evaluations: dict[str, list[Evaluation]] = {}
    for seed in chosen.seeds:
        trained, seconds = train(SurrogateGradient(), data, seed, chosen.epochs)
        bayes, bayes_seconds = train(SpikingBayes(**POSTERIOR), data, seed, chosen.epochs)
        for name, module, samples, cost in (
            ("surrogate", trained, None, seconds),
            ("Bayes mean", bayes, 0, bayes_seconds),
            (f"Bayes K={chosen.samples}", bayes, chosen.samples, bayes_seconds),
        ):
            if samples is not None:
                module.method.samples = samples
            torch.manual_seed(seed)
            each = Evaluation({group: predict(module, data, of) for group, of in images.items()}, targets)
            evaluations.setdefault(name, []).append(each)
            results.append({"seed": seed, "predictor": name, "training s": cost, **each.scores()})

        # Write after every seed, so that an interrupted run keeps its results.
        record = {"posterior": POSTERIOR, "epochs": chosen.epochs, "runs": results, "means": average(results)}
        (chosen.output / "uncertainty.json").write_text(json.dumps(record, indent=2))
    draw(evaluations, chosen.output)
    heading = list(dict.fromkeys(key for result in results for key in result))
    show(heading, [[_cell(result.get(key)) for key in heading] for result in results + average(results)], [], None)


def _cell(value: float | int | str | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
