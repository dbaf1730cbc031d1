"""`SpikeRaster`: what it draws, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_snn.callbacks import SpikeRaster
from tests.support.figures import record_drawn
from tests.support.given_spikes import STEPS, Echo, Given, data, spikes
from tests.support.third_party import Ours, SnntorchLoop, SpikingJellyMulti, loader
from tests.support.training import trainer


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Record the drawings; figures are empty, for speed."""
    return record_drawn(monkeypatch, "spike_raster")


def test_the_first_samples_of_the_first_batch_are_drawn(drawn, tmp_path: Path) -> None:
    trainer(SpikeRaster(samples=2, folder=tmp_path)).validate(Given(), data(spikes(), 4), verbose=False)
    assert [list(layers) for layers in drawn] == [["first", "second"]] * 2
    for layers, sample in zip(drawn, spikes(), strict=False):
        np.testing.assert_array_equal(layers["first"].numpy(), sample.numpy())
        np.testing.assert_array_equal(layers["second"].numpy(), sample[:, :2].numpy())
    assert not torch.equal(drawn[0]["first"], drawn[1]["first"])
    assert {file.name for file in tmp_path.iterdir()} == {"raster_val.png", "raster_val_1.png"}


def test_a_batch_of_fewer_samples_has_fewer_figures(drawn, tmp_path: Path) -> None:
    trainer(SpikeRaster(samples=5, folder=tmp_path)).test(Given(), data(spikes(), 2), verbose=False)
    assert {file.name for file in tmp_path.iterdir()} == {"raster_test.png", "raster_test_1.png"}


def test_each_nth_epoch_is_drawn_and_each_validation_and_test(drawn, tmp_path: Path) -> None:
    made, module = trainer(SpikeRaster(2, folder=tmp_path), max_epochs=4, num_sanity_val_steps=1), Given()
    made.fit(module, data(spikes()), data(spikes()))
    assert len(drawn) == 2
    assert module.hooked.count(True) == 2
    made.validate(module, data(spikes()), verbose=False)
    assert len(drawn) == 3
    made.test(module, data(spikes()), verbose=False)
    assert len(drawn) == 4
    assert {file.name for file in tmp_path.iterdir()} == {"raster_val.png", "raster_test.png"}


def test_each_stage_has_its_own_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw training in the first epoch, and a validation that runs in every second epoch too."""
    drawn: list[tuple[int, str]] = []
    monkeypatch.setattr(
        "lightning_snn.callbacks.raster.log_rasters",
        lambda trainer, name, traces, folder: drawn.append((trainer.current_epoch, name)),
    )
    callback = SpikeRaster(2, stages=["train", "val"], folder=tmp_path)
    made = trainer(callback, max_epochs=5, check_val_every_n_epoch=2, limit_train_batches=1)
    made.fit(Given(), data(spikes()), data(spikes()))
    assert drawn == [
        (0, "raster_train"),
        (1, "raster_val"),
        (2, "raster_train"),
        (3, "raster_val"),
        (4, "raster_train"),
    ]


def test_training_is_drawn_if_asked_for(drawn, tmp_path: Path) -> None:
    made = trainer(SpikeRaster(stages=["train"], folder=tmp_path, name="spikes"))
    made.fit(Given(), data(spikes()), data(spikes()))
    made.test(Given(), data(spikes()), verbose=False)
    assert [file.name for file in tmp_path.iterdir()] == ["spikes_train.png"]


@pytest.mark.parametrize(("kind", "layers"), [(Ours, 1), (SnntorchLoop, 2), (SpikingJellyMulti, 1)])
def test_layers_of_every_library_are_drawn_over_all_steps(kind, layers: int, drawn, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer(SpikeRaster(folder=tmp_path)).test(kind(), loader(), verbose=False)
    assert len(drawn) == 1
    assert len(drawn[0]) == layers
    assert all(value.shape[0] == 5 for value in drawn[0].values())


def test_layers_of_other_steps_are_left_out_by_name(drawn, tmp_path: Path) -> None:
    class Longer(Given):
        def __init__(self) -> None:
            super().__init__()
            self.third = Echo()

        def forward(self, batch: list[Tensor]) -> Tensor:
            self.third(batch[0][:, 0])
            return super().forward(batch)

    with pytest.warns(
        UserWarning, match=f"raster_test shows layers with {STEPS} time steps and leaves out third with 1"
    ):
        trainer(SpikeRaster(folder=tmp_path)).test(Longer(), data(spikes()), verbose=False)
    assert list(drawn[0]) == ["first", "second"]


def test_of_a_layer_in_several_places_the_first_is_drawn(drawn, tmp_path: Path) -> None:
    class Twice(Given):
        def forward(self, batch: list[Tensor]) -> Tensor:
            for x in batch[0].unbind(1):
                self.first(x)
                self.first(x[:, :2])
            return self.weight**2

    trainer(SpikeRaster(folder=tmp_path)).test(Twice(), data(spikes()), verbose=False)
    np.testing.assert_array_equal(drawn[0]["first"].numpy(), spikes()[0].numpy())


def test_steps_without_spiking_layers_draw_no_figure(drawn, tmp_path: Path) -> None:
    class Idle(Given):
        def forward(self, batch: list[Tensor]) -> Tensor:
            return self.weight**2

    trainer(SpikeRaster(folder=tmp_path)).test(Idle(), data(spikes()), verbose=False)
    assert not drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, "`every_n_epochs` to be an integer of at least 1, but got 0"),
        ({"samples": 0}, "`samples` to be an integer of at least 1, but got 0"),
        ({"stages": ["valid"]}, "`stages` to be one of 'train', 'val', 'test', but got 'valid'"),
        ({"stages": "val"}, "`stages` to be a list of at least one stage, but got 'val'"),
        ({"stages": []}, r"`stages` to be a list of at least one stage, but got \[\]"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikeRaster(**options)
