"""Neurons that spike at most once learn digits: exact gradients, sparse activity, fine-tuning for 4-bit hardware.

--data.root is the path of the digits, an .npz file or the folder that torchvision writes. In addition to the report,
the run writes spike_times.png, and jacobian_spectra.png of a deep network at initialization, with naive and with unit
slopes. It takes minutes on two CPU cores.
"""

from pathlib import Path

import torch
from torch import nn

from lightning_snn import figures
from lightning_snn.cli import main
from lightning_snn.functional.jacobian import eigenvalues
from lightning_snn.methods.ttfs import AlphaLinear, FirstSpike

DEFAULTS = {
    "data": "MNIST",
    "data.time_steps": 1,
    "data.batch_size": 350,
    "network": "MLP",
    "network.hidden": [340],
    "method": "TimeToFirstSpike",
    "model.learning_rate": 5e-4,
    "trainer.max_epochs": 14,
    "trainer.log_every_n_steps": 10,
}
# defaults per method, which the command line overrides
PRESETS = {
    "TimeToFirstSpike": {
        "method.activity_penalty": 1e-3,  # without it the network has two to three times as many spikes
        "trainer.callbacks": [
            {
                "class_path": "lightning_snn.callbacks.HardwareFineTuning",
                "init_args": {
                    "constraints": {
                        "time_bits": 4,
                        "weight_bits": 4,
                        "weight_percentile": 99.9,
                        "latency_factor": 4.0,
                        "jitter": 0.05,
                    },
                    "start_epoch": 12,
                    "learning_rate_factor": 0.5,
                },
            },
            {"class_path": "lightning_snn.callbacks.SpikeTimes"},
        ],
    },
}
DEPTH, WIDTH = 16, 128


def draw_jacobian_spectra(image: torch.Tensor, folder: Path) -> None:
    """Draw the eigenvalues of each layer's Jacobian in a deep network before training, for naive and for unit slopes.

    Jacobians explode if neurons with naive slopes near 0 spike; neurons with negative slopes never spike.
    """
    torch.manual_seed(0)
    naive, unit = [], []
    for size in (image.shape[1], *[WIDTH] * (DEPTH - 1)):
        alpha, synapses = AlphaLinear(size, WIDTH, bias=False), nn.Linear(size, WIDTH, bias=False)
        nn.init.kaiming_normal_(synapses.weight, nonlinearity="relu")
        alpha.weight = synapses.weight
        naive.append(alpha)
        unit.append(nn.Sequential(synapses, FirstSpike()))
    weights, slopes = [layer.weight for layer in naive[1:]], [layer.slope for layer in naive[1:]]
    every = [weight / slope[:, None] for weight, slope in zip(weights, slopes, strict=True)]
    panels = {
        "naive slopes, if all neurons spiked": torch.linalg.eigvals(torch.stack(every)),
        "unit slopes, if all neurons spiked": torch.linalg.eigvals(torch.stack(weights)),
        "naive slopes, for a digit": spectra(naive, image),
        "unit slopes, for a digit": spectra(unit, image),
    }
    figures.save(figures.jacobian_spectra(panels), folder / "jacobian_spectra.png")


def spectra(layers: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Return the eigenvalues of the Jacobians of all layers but the first, for one input."""
    found, inputs = [], layers[0](x)
    for layer in layers[1:]:
        outputs = layer(inputs)
        found.append(eigenvalues(outputs, inputs))
        inputs = outputs
    return torch.cat(found)


if __name__ == "__main__":
    cli = main(__file__, DEFAULTS, PRESETS)
    if not cli.trainer.fast_dev_run:
        digits, _ = cli.datamodule.on_after_batch_transfer(next(iter(cli.datamodule.test_dataloader())), 0)
        draw_jacobian_spectra(digits[0, :1].flatten(1), cli.output)
