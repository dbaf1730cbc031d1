"""Expectation propagation in a stock Trainer: accumulation, clipping, curves, precision, kills."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.data.resumable import ResumableLoader, trained_batches
from lightning_snn.methods import ExpectationPropagation
from tests.methods.ep.task import assert_prior_and_sites_add_up, dense, digits
from tests.support.training import one_step, trainer


def module(method: ExpectationPropagation, network: nn.Module | None = None, seed: int = 0, **options) -> SpikingModule:
    torch.manual_seed(seed)
    return SpikingModule(dense(24, 6, 3) if network is None else network, method, **({"num_classes": 3} | options))


def layers(module: SpikingModule) -> list[nn.Module]:
    return [block.layer for block in module.network.chain.blocks]


def batches(samples: int = 120, shuffle: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x, y = digits(samples, seed=seed)
    dataset = TensorDataset(x.to(dtype), y)
    return DataLoader(dataset, 20, shuffle=shuffle, generator=generator, collate_fn=one_step)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 4},  # and 2 at the end of an epoch
        {"gradient_clip_val": 0.5},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    ],
)
@pytest.mark.parametrize("weights", ["gaussian", "categorical"])
def test_prior_and_sites_add_up_to_the_posterior_whatever_the_trainer_does(options, weights):
    made = module(ExpectationPropagation(weights=weights, iterations=3))
    fitting = trainer(max_epochs=2, precision="64-true", **options)
    fitting.fit(made, batches())
    assert_prior_and_sites_add_up(layers(made))
    assert {len(layer.sites) for layer in layers(made)} == {6}
    assert {layer.sites.samples for layer in layers(made)} == {120}


def test_a_loader_that_shuffles_samples_is_refused_in_favor_of_fixed_batches():
    fitting = trainer(max_epochs=2, precision="64-true")
    with pytest.raises(ValueError, match="same samples in each batch in every epoch.*FixedBatches.*shuffle=False"):
        fitting.fit(module(ExpectationPropagation(iterations=2)), batches(shuffle=True))
    assert fitting.current_epoch == 1
    assert fitting.global_step == 6


class Ready(IterableDataset):
    """Ready batches, of a number that no one knows."""

    def __iter__(self):
        return iter(batches())


def test_ready_batches_of_an_unknown_number_are_known_again():
    found = []
    for loader in (batches(), DataLoader(Ready(), batch_size=None)):
        made = module(ExpectationPropagation(iterations=2))
        trainer(max_epochs=3, precision="64-true").fit(made, loader)
        assert {len(layer.sites) for layer in layers(made)} == {6}
        found.append(layers(made)[0].precision_mean)
    assert torch.equal(*found)


@pytest.mark.parametrize("memory", ["average", "adf"])
def test_other_memories_take_any_batches(memory):
    made = module(ExpectationPropagation(iterations=2, memory=memory))
    trainer(max_epochs=2, precision="64-true").fit(made, batches(shuffle=True))
    assert [len(layer.sites) for layer in layers(made)] == [0, 0]


def test_curves_of_evidence_and_guards_are_logged():
    class Curves(pl.Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_end(self, trainer, *_):
            self.found.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    curves = Curves()
    fitting = trainer(curves, max_epochs=1, precision="64-true")
    fitting.fit(module(ExpectationPropagation()), batches(), batches(seed=1))
    assert all(
        {"train/log_evidence", "train/skipped", "train/halved", "train/residual", "train/loss"} <= set(each)
        for each in curves.found
    )
    assert [each["train/skipped"] for each in curves.found] == [0.0] * 6
    assert curves.found[-1]["train/log_evidence"] > curves.found[0]["train/log_evidence"]
    assert curves.found[-1]["train/loss"] < curves.found[0]["train/loss"]
    assert fitting.callback_metrics["val/accuracy"] > 0.8


class Killed(Exception):
    pass


class Kill(pl.Callback):
    """Saves behind a step and dies in the next one, after it was asked for and before the optimizer made it."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("weights", ["gaussian", "sign"])
def test_a_run_killed_in_its_second_pass_resumes_to_the_same_posterior_and_sites(tmp_path, weights):
    def loader(fitting):
        made = ResumableLoader(TensorDataset(*digits(120)), 20, collate_fn=one_step)
        made.position = lambda: trained_batches(fitting)
        return made

    def fresh(seed=0):
        return module(ExpectationPropagation(weights=weights, iterations=3), seed=seed)

    whole, killed, resumed = fresh(), fresh(), fresh(seed=1)
    fitting = trainer(max_epochs=3, precision="64-true")
    fitting.fit(whole, loader(fitting))
    fitting = trainer(Kill(8, tmp_path / "half.ckpt"), max_epochs=3, precision="64-true")
    with pytest.raises(Killed):
        fitting.fit(killed, loader(fitting))
    fitting = trainer(max_epochs=3, precision="64-true")
    fitting.fit(resumed, loader(fitting), ckpt_path=tmp_path / "half.ckpt")
    assert fitting.global_step == 18
    for one, other, behind in zip(layers(whole), layers(resumed), layers(killed), strict=True):
        assert_prior_and_sites_add_up([one, other], 1e-9)
        assert all(torch.equal(a, b) for a, b in zip(one.natural, other.natural, strict=True))
        assert not torch.equal(one.precision, behind.precision)
        assert one.sites._sites.keys() == other.sites._sites.keys()
        for key in one.sites._sites:
            assert all(torch.equal(a, b) for a, b in zip(one.sites.site(key), other.sites.site(key), strict=True))


def test_mixed_precision_touches_neither_posterior_nor_prediction():
    found = []
    for precision in ("bf16-mixed", "32-true"):
        made = module(ExpectationPropagation(iterations=3), dense(24, 6, 3).float())
        fitting = trainer(max_epochs=1, precision=precision)
        fitting.fit(made, batches(dtype=torch.float32))
        predictions = fitting.predict(made, batches(dtype=torch.float32))
        found.append((layers(made)[0].precision_mean, torch.cat([each.mean for each in predictions])))
    (posterior, mean), (expected, plain) = found
    assert posterior.dtype == mean.dtype == torch.float32
    assert torch.equal(posterior, expected)
    assert torch.equal(mean, plain)


def test_a_regression_brings_its_own_optimizer_and_learns_its_noise():
    made = module(
        ExpectationPropagation(iterations=3, learn_noise=True), dense(24, 1), task="regression", num_classes=None
    )
    x, _ = digits(120)
    values = (x[:, :5].sum(1) + 0.3 * torch.randn(120).double())[:, None]
    loader = DataLoader(TensorDataset(x, values), 20, collate_fn=one_step)
    fitting = trainer(max_epochs=3, precision="64-true")
    fitting.fit(made, loader, loader)
    assert isinstance(fitting.optimizers[0], torch.optim.SGD)
    assert fitting.callback_metrics["val/mse"] < 0.2
    assert made.network[-1].noise_variance != 0.01
    assert_prior_and_sites_add_up(layers(made), 1e-9)
