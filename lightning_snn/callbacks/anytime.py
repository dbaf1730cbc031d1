"""Predictions after each time step of some test samples, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.pass_scores import classification_scores
from lightning_snn.callbacks.predictions import describe, join_processes, read_prediction
from lightning_snn.functional.entropy import expected_entropy
from lightning_snn.metrics.functional import predictive_entropy
from lightning_snn.processes import gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("step", "accuracy", "nll", "ece", "entropy")
_LABELS = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "ece": "expected calibration error"}
_EXAMPLES = 4
_ROUNDING = 0.01  # of sums of probabilities in half precision


@dataclass(frozen=True)
class AnytimePredictions:
    """Predictions of N samples after each of T time steps, on the host.

    Attributes:
        probabilities: class probabilities, `[T, N, C]`, in float64.
        targets: true classes, `[N]`.
        expected_entropy: mean entropy of the predictions of which `probabilities` is the mixture, `[T, N]`, in nats;
            None if there is only one.
    """

    probabilities: Tensor
    targets: Tensor
    expected_entropy: Tensor | None = None

    def scores(self) -> list[dict[str, float]]:
        """Return for each step its number, accuracy, negative log-likelihood, ECE, and mean entropy of predictions."""
        rows = []
        for step, probabilities in enumerate(self.probabilities, start=1):
            found = classification_scores(probabilities, self.targets)
            entropy = predictive_entropy(probabilities).mean().item()
            rows.append(
                {"step": step, **{name: found[name] for name in ("accuracy", "nll", "ece")}, "entropy": entropy}
            )
        return rows

    def draw(self, class_names: Sequence[str]) -> dict[str, Figure]:
        """Return the figures of scores against steps, and of the first sample of each of the first four classes."""
        rows = self.scores()
        chosen = self._examples()
        entropy = None if self.expected_entropy is None else self.expected_entropy[:, chosen].T
        return {
            "anytime_scores": figures.anytime_scores(
                {label: [row[name] for row in rows] for name, label in _LABELS.items()}
            ),
            "anytime_samples": figures.anytime_samples(
                self.probabilities[:, chosen].transpose(0, 1), self.targets[chosen].tolist(), class_names, entropy
            ),
        }

    def _examples(self) -> list[int]:
        first = {label: index for index, label in reversed(list(enumerate(self.targets.tolist())))}
        return sorted(first.values())[:_EXAMPLES]


class AnytimeRecorder:
    """The first test batches, for predictions after each time step at the end of the test.

    Other callbacks still observe the network when a batch ends, so these runs wait for the end of the epoch.

    Args:
        batches: number of batches that are kept, on the host; 0 keeps none.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self._kept: list[tuple[Any, Tensor]] = []

    def add(self, batch: Any, target: Tensor) -> None:
        """Keep a batch and its classes `[B]`, unless there are enough."""
        if len(self._kept) < self.batches:
            self._kept.append((move_data_to_device(batch, torch.device("cpu")), target.cpu()))

    def predict(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> AnytimePredictions | str:
        """Return the predictions for the batches of all processes, or why there are none.

        All processes have to call this method. Generators of random numbers keep their states. Shorter sequences keep
        their last prediction. A module that predicts, but not after each time step, must not fail a test: its error
        becomes a warning, and the reason.
        """
        kept, self._kept = self._kept, []
        problem, parts = None, []
        predict = getattr(pl_module, "predict_anytime", None)
        if not self.batches:
            problem = "`anytime_batches` is 0"
        elif predict is None:
            problem = f"{type(pl_module).__name__} defines no `predict_anytime`"
        else:
            with isolate_rng(), trainer.precision_plugin.forward_context():
                try:
                    for batch, target in kept:
                        moved = move_data_to_device(batch, pl_module.device)
                        parts.append(_read(predict(moved), target, pl_module))
                except Exception as error:
                    problem = f"they failed: {' '.join(str(error).split()) or type(error).__name__}"
                    rank_zero_warn(f"The report has no anytime predictions, because {problem}")
        problems = gather(problem)
        found = next((each for each in problems if each is not None), None)
        return found or _joined(parts, trainer)


def _read(value: Any, target: Tensor, pl_module: pl.LightningModule) -> AnytimePredictions:
    """Return the predictions of a batch."""
    prediction = read_prediction(value)
    mean = None if prediction is None else prediction.mean
    if prediction is None or mean is None or mean.dim() != 3 or mean.shape[1] != len(target):
        raise ValueError(
            f"Expected `predict_anytime` of {type(pl_module).__name__} to return class probabilities [T, B, C], but "
            f"got {describe(value if mean is None else mean)}"
        )
    # half precision is widened, and the mean of ones may round to more than 1
    probabilities = mean.detach().cpu().double().clamp(max=1)
    if not ((probabilities >= 0).all() and ((probabilities.sum(-1) - 1).abs() <= _ROUNDING).all()):
        raise ValueError(
            f"Expected `predict_anytime` of {type(pl_module).__name__} to return class probabilities that sum to 1, "
            f"but got values from {mean.min():g} to {mean.max():g}"
        )
    samples = prediction.samples
    entropy = None if samples is None else expected_entropy(samples.detach()).cpu().double()
    return AnytimePredictions(probabilities, target, entropy)


def _joined(parts: list[AnytimePredictions], trainer: pl.Trainer) -> AnytimePredictions | str:
    steps = max(gather(max((len(part.probabilities) for part in parts), default=0)))
    if steps < 2:
        return "the inputs have one time step" if steps else "the test has no batch"

    def join(rows: list[Tensor]) -> Tensor | None:
        joined = join_processes([_extended(row, steps).transpose(0, 1) for row in rows], trainer)
        return None if joined is None else joined.cpu().transpose(0, 1)

    probabilities = join([part.probabilities for part in parts])
    entropies = join([part.expected_entropy for part in parts if part.expected_entropy is not None])
    targets = join_processes([part.targets for part in parts], trainer)
    assert probabilities is not None
    assert targets is not None
    return AnytimePredictions(probabilities, targets.cpu(), entropies)


def _extended(rows: Tensor, steps: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(steps - len(rows), *rows.shape[1:])])
