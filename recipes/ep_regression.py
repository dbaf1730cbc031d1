"""Expectation propagation learns a curve with a gap in the data, with bands of two standard deviations; so does Adam.

The data are simulated: y = sin 2x + 0.3 cos 5x with noise, on [0, 1] and [2.5, 4], with x encoded by a population of
neurons. In addition to the report, the run writes curve.png. The band is that of the curve, without observation noise.
It widens in the gap, but it is not calibrated. In the gap the error of the mean exceeds it, because the posterior
assumes independent weights and leaves those of neurons that spike for no sample at the prior. Among the data it is too
wide, because the posterior ignores the negative correlations that each observation causes.
"""

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import SpikingModule, figures
from lightning_snn.cli import RecipeCLI, main
from lightning_snn.files import write_json
from lightning_snn.methods import Prediction, SurrogateGradient
from lightning_snn.methods.ep.firing import firing_network

DEFAULTS = {
    "data": "NoisyCurve",
    "data.fixed_batches": True,
    "data.batch_size": 100,
    "network": "MLP",
    "network.hidden": [128],
    "method": "ExpectationPropagation",
    "model.task": "regression",
    "trainer.max_epochs": 5,
    "trainer.log_every_n_steps": 10,
}
PRESETS = {
    "ExpectationPropagation": {
        "method.activation": "heaviside",
        "method.prior_variance": [1.0, 1.0],
        "method.prior_split": [0.1, 0.5],
        "method.iterations": 5,
        "method.damping": 0.3,
        "method.solver_iterations": 5,
        "method.noise_variance": 0.0025,
    },
}
# of Adam
EPOCHS, LEARNING_RATE = 100, 1e-2
GAP = (1.25, 2.25)  # middle of the interval without data


def by_adam(cli: RecipeCLI, x: Tensor) -> Tensor:
    """Return the curve `[N]` that the same network learns with point weights by least squares (maximum likelihood)."""
    pl.seed_everything(cli.config.seed_everything, verbose=False)
    network = firing_network(cli.config_init.network, outputs_spike=False)
    module = SpikingModule(network, SurrogateGradient(), task="regression", learning_rate=LEARNING_RATE)
    trainer = pl.Trainer(
        accelerator=cli.config.trainer.accelerator,
        devices=cli.config.trainer.devices,
        enable_progress_bar=cli.shows_progress,
        max_epochs=EPOCHS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, cli.datamodule)
    return predict(module, x).mean[:, 0]


@torch.no_grad()
def predict(module: SpikingModule, x: Tensor) -> Prediction:
    module.eval()
    return module.predict_step(x.to(module.device), 0)


def deviation(prediction: Prediction) -> Tensor:
    """Return the standard deviation `[N]` of the curve, due to weights and spikes and without observation noise."""
    parts = prediction.variance_parts
    if parts is None:
        return torch.zeros_like(prediction.mean[:, 0])
    return (parts["epistemic"] + parts["spikes"])[:, 0].sqrt()


def scores(
    mean: Tensor, sd: Tensor, truth: Tensor, x: Tensor, intervals: tuple[tuple[float, float], ...]
) -> dict[str, dict[str, float]]:
    """Return squared error, standard deviation, and coverage by two of them, among the data and in the gap."""
    among = torch.stack([(start <= x) & (x <= end) for start, end in intervals]).any(0)
    found = {}
    for name, part in (("among the data", among), ("in the gap", (GAP[0] < x) & (x < GAP[1]))):
        error = (mean - truth)[part]
        found[name] = {
            "mean squared error": error.square().mean().item(),
            "standard deviation": sd[part].mean().item(),
            "within two of them": (error.abs() <= 2 * sd[part]).double().mean().item(),
        }
    return found


if __name__ == "__main__":
    cli = main(__file__, DEFAULTS, PRESETS)
    if not cli.trainer.fast_dev_run:
        data = cli.datamodule
        x, encoded = data.grid()
        truth = data.truth(x)
        prediction = predict(cli.model, encoded)
        mean, sd = prediction.mean[:, 0].cpu(), deviation(prediction).cpu()
        least_squares = by_adam(cli, encoded).cpu()
        found = {
            type(cli.model.method).__name__: scores(mean, sd, truth, x, data.intervals),
            "Adam": scores(least_squares, torch.zeros_like(sd), truth, x, data.intervals),
        }
        for learner, regions in found.items():
            for region, values in regions.items():
                text = "  ".join(
                    f"{name} {value:.4g}"
                    for name, value in values.items()
                    if name.startswith("mean") or learner != "Adam"
                )
                print(f"{learner:<24} {region:<16} {text}")
        write_json(cli.output / "curve.json", found)
        (_, first), (second, _) = data.intervals
        edges = [(x[0].item(), data.intervals[0][0]), (first, second), (data.intervals[-1][1], x[-1].item())]
        samples = data.train_set.tensors
        figure = figures.regression_bands(
            x, mean, sd, truth, (samples[0][:, 0], samples[1][:, 0]), {"maximum likelihood": least_squares}, edges
        )
        figures.save(figure, cli.output / "curve.png")
