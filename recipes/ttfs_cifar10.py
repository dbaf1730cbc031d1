"""A convolutional ReLU network learns CIFAR-10, is converted to neurons that spike once, and fine-tuned for hardware.

--data.root is the folder of the images or an .npz file. The network, with batch normalization and max-pooling, is
trained as in other recipes. Then it is converted, compared with the spiking network on every test image in float64, and
fine-tuned.
"""

import copy
from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_snn import SpikingModule
from lightning_snn.callbacks import HardwareConstraints, HardwareFineTuning, SpikeTimes
from lightning_snn.cli import RecipeCLI, main
from lightning_snn.data import FrameDataModule
from lightning_snn.files import write_json
from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.methods.ttfs.windows import calibrate, latency
from lightning_snn.metrics.ttfs import SpikesPerNeuron, record_emissions

DEFAULTS = {
    "data": "CIFAR10",
    "data.time_steps": 1,
    "data.augmentation": True,
    "data.batch_size": 64,
    "network": "VGG",
    "network.relu": True,
    "network.channels": [32, "M", 64, 64, "M", 128, 128, "M"],  # sized for a subset of 6,000 images and two CPU cores
    "method": "SurrogateGradient",  # plain backpropagation, because nothing spikes
    "model.learning_rate": 3e-3,
    "model.lr_scheduler": "cosine",
    "trainer.max_epochs": 10,
    "trainer.log_every_n_steps": 10,
}
# folded batch normalization gives channels weights of very different magnitude
CONSTRAINTS = HardwareConstraints(jitter=0.01, time_bits=6, weight_bits=6, weight_ranges="channel", latency_factor=2)
EPOCHS, LEARNING_RATE = 5, 3e-4


def batches(data: FrameDataModule, loader: torch.utils.data.DataLoader) -> Iterator[Tensor]:
    """Yield images `[B, C, H, W]` in float64, preprocessed as for the module."""
    for batch in loader:
        yield data.on_after_batch_transfer(batch, 0)[0][0].double()


@torch.no_grad()
def compare(network: nn.Module, method: TimeToFirstSpike, data: FrameDataModule) -> dict[str, float]:
    """Compare a network with its spiking counterpart, which uses absolute spike times; both in float64."""
    network = copy.deepcopy(network).cpu().double().eval()
    spiking = method.prepare(network)
    calibrate(spiking, batches(data, data.val_dataloader()))
    spikes, mismatches, difference, images = SpikesPerNeuron(), 0, 0.0, 0
    for x in batches(data, data.test_dataloader()):
        with record_emissions(spiking) as emissions:
            found, expected = spiking(x), network(x)
        spikes.update(emissions)
        mismatches += int((found.argmax(1) != expected.argmax(1)).sum())
        difference = max(difference, (found - expected).abs().max().item())
        images += len(x)
    return {
        "test images": images,
        "mismatches": mismatches,
        "largest logit difference": difference,
        "spikes per neuron": spikes.compute().item(),
        "latency (input windows)": latency(spiking).item(),
    }


def fine_tune(cli: RecipeCLI) -> dict[str, float]:
    """Return the accuracies of the spiking network before, under and after fine-tuning for the constraints."""
    method = TimeToFirstSpike(input_shape=cli.datamodule.frame_shape, gamma=None)
    module = SpikingModule(
        cli.model.network, method, cli.datamodule.num_classes, learning_rate=LEARNING_RATE, lr_scheduler="cosine"
    )
    hardware = HardwareFineTuning(CONSTRAINTS, start_epoch=0, learning_rate_factor=1.0)
    trainer = pl.Trainer(
        accelerator=cli.config.trainer.accelerator,
        devices=cli.config.trainer.devices,
        fast_dev_run=cli.config.trainer.fast_dev_run,
        enable_progress_bar=cli.shows_progress,
        max_epochs=EPOCHS,
        callbacks=[hardware, SpikeTimes(cli.output)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, cli.datamodule)
    (tested,) = trainer.test(module, cli.datamodule, verbose=False)
    return {name.removeprefix("test/"): value for name, value in tested.items()}


if __name__ == "__main__":
    cli = main(__file__, DEFAULTS)
    time_domain = TimeToFirstSpike(input_shape=cli.datamodule.frame_shape, time_domain=True)
    results = {"mapped": compare(cli.model.network, time_domain, cli.datamodule), "fine-tuned": fine_tune(cli)}
    for title, values in results.items():
        print("\n" + title + "".join(f"\n  {name:<36}  {value:.4g}" for name, value in values.items()))
    if not cli.config.trainer.fast_dev_run:
        write_json(cli.output / "first_spikes.json", results)
