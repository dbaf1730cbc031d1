"""SpikingModule with several loaders, with optimizers and schedulers of one's own, and without a Trainer."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import ActivityPenalty, ExpectationPropagation, SpikingBayes
from tests.support.event_order import loader, order_of_events, small_network
from tests.support.training import trainer

X, Y = order_of_events(20)
OTHER_X, OTHER_Y = order_of_events(12, seed=1)


@pytest.mark.parametrize("loaders", [list, lambda two: dict(zip("ab", two, strict=True))], ids=["list", "dict"])
def test_each_of_several_loaders_has_its_own_metrics(loaders):
    module = SpikingModule(small_network(), num_classes=2)
    parts = [loader(X, Y, 16), loader(OTHER_X, OTHER_Y, 16)]
    alone = [trainer().validate(module, part, verbose=False)[0] for part in parts]
    fitting = trainer(limit_train_batches=0)
    for stage in ("validate", "test"):
        prefix = {"validate": "val", "test": "test"}[stage]
        results = getattr(fitting, stage)(module, loaders(parts), verbose=False)
        for index, (result, expected) in enumerate(zip(results, alone, strict=True)):
            named = {f"{prefix}/{key.partition('/')[2]}/dataloader_idx_{index}": v for key, v in expected.items()}
            assert result == pytest.approx(named)
    assert alone[0] != alone[1]
    assert [len(predictions) for predictions in trainer().predict(module, loaders(parts))] == [3, 2]
    assert not [name for name in module.state_dict() if not name.startswith("network.")]


def test_several_loaders_are_validated_while_training():
    module = SpikingModule(small_network(), num_classes=2)
    fitting = trainer(max_epochs=2)
    fitting.fit(module, loader(X, Y, 16), [loader(X, Y, 16), loader(OTHER_X, OTHER_Y, 16)])
    for index, part in enumerate((loader(X, Y, 16), loader(OTHER_X, OTHER_Y, 16))):
        (alone,) = trainer().validate(module, part, verbose=False)
        assert fitting.callback_metrics[f"val/nll/dataloader_idx_{index}"].item() == pytest.approx(alone["val/nll"])


@pytest.mark.parametrize("name", ["adamw", "AdamW", "sgd"])
def test_an_optimizer_is_chosen_by_name(name):
    module = SpikingModule(small_network(), num_classes=2, optimizer=name, learning_rate=0.02)
    optimizer = module.configure_optimizers()
    assert type(optimizer).__name__.lower() == name.lower()
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert module.hparams["optimizer"] == name


def test_an_unknown_optimizer_is_refused_by_name():
    with pytest.raises(ValueError, match="Expected an optimizer of torch.optim .*AdamW.*, but got 'adamv'"):
        SpikingModule(small_network(), num_classes=2, optimizer="adamv")


def test_an_optimizer_of_other_parameters_is_refused():
    network = small_network()
    module = SpikingModule(network, num_classes=2, optimizer=lambda _: torch.optim.SGD(network.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"but it holds others. The module trains its own copy of the network"):
        trainer().fit(module, loader(X, Y))


def test_the_learning_rate_is_that_of_the_optimizer_unless_it_is_given():
    def factory(parameters):
        return torch.optim.SGD([{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:]}], lr=0.2)

    rates = {
        given: [
            group["lr"]
            for group in SpikingModule(small_network(), num_classes=2, optimizer=factory, learning_rate=given)
            .configure_optimizers()
            .param_groups
        ]
        for given in (None, 0.3)
    }
    assert rates == {None: [0.5, 0.2], 0.3: [0.3, 0.3]}


def test_the_learning_rate_finder_acts_on_an_optimizer_of_ones_own(tmp_path):
    module = SpikingModule(small_network(), num_classes=2, optimizer=lambda p: torch.optim.SGD(p, 1e-5))
    fitting = trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    found = Tuner(fitting).lr_find(module, loader(X, Y, 1), num_training=30, early_stop_threshold=None).suggestion()
    assert module.learning_rate == found
    assert module.configure_optimizers().param_groups[0]["lr"] == found


def test_a_method_with_an_optimizer_warns_of_choices_without_effect():
    module = SpikingModule(nn.Sequential(nn.Linear(2, 2)), ExpectationPropagation(), num_classes=2, learning_rate=0.1)
    with pytest.warns(UserWarning, match="ExpectationPropagation has its own optimizer, so `optimizer` and"):
        module.configure_optimizers()


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (lambda optimizer: {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step"}, {"interval": "step"}),
        ({"scheduler": lambda optimizer: StepLR(optimizer, 1, 0.5), "frequency": 2}, {"frequency": 2}),
        (lambda optimizer: ReduceLROnPlateau(optimizer), {"monitor": "val/nll"}),
        ({"scheduler": ReduceLROnPlateau, "monitor": "train/loss"}, {"monitor": "train/loss"}),
    ],
    ids=["a dictionary", "a dictionary of a function", "plateau", "a monitor"],
)
def test_schedulers_of_ones_own_are_used_as_lightning_uses_them(scheduler, expected):
    module = SpikingModule(small_network(), num_classes=2, lr_scheduler=scheduler)
    chosen = module.configure_optimizers()["lr_scheduler"]
    assert {key: value for key, value in chosen.items() if key != "scheduler"} == expected
    trainer().fit(module, loader(X, Y, 16), loader(X, Y, 16))


def test_a_scheduler_per_step_steps_per_step():
    module = SpikingModule(
        small_network(),
        num_classes=2,
        learning_rate=0.1,
        lr_scheduler=lambda optimizer: {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step"},
    )
    fitting = trainer()
    fitting.fit(module, loader(X, Y, 16))
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


def test_a_dictionary_without_a_scheduler_is_refused():
    with pytest.raises(ValueError, match='argument `lr_scheduler` to hold a function of the optimizer as "scheduler"'):
        SpikingModule(small_network(), num_classes=2, lr_scheduler={"interval": "step"})


@pytest.mark.parametrize("method", [None, SpikingBayes(train_size=40)], ids=["surrogate", "bayes"])
def test_training_by_hand_needs_no_trainer(method, recwarn):
    torch.manual_seed(0)
    module = SpikingModule(small_network(), method, num_classes=2, optimizer="adam", learning_rate=0.05)
    optimizer = module.configure_optimizers()
    losses = []
    for index in range(30):
        optimizer.zero_grad()
        loss = module.training_step((X, Y), index)
        loss.backward()
        optimizer.step()
        losses.append(module.method.task.loss(module(X).mean(0), Y).item())
    assert losses[-1] < 0.5 * losses[0]
    assert module.validation_step((X, Y), 0)["prediction"].mean.shape == (40, 2)
    assert 0 <= module.val_metrics.compute()["val/accuracy"] <= 1
    assert module.predict_step(X, 0).mean.shape == (40, 2)
    assert not [warning for warning in recwarn if "log" in str(warning.message)]


def test_cosine_by_hand_says_that_it_needs_a_trainer():
    with pytest.raises(ValueError, match='Expected a Trainer for lr_scheduler="cosine"'):
        SpikingModule(small_network(), num_classes=2, lr_scheduler="cosine").configure_optimizers()


def test_a_cosine_schedule_that_is_resumed_ends_with_the_longer_run(tmp_path):
    def rates(epochs: int, path=None) -> list[float]:
        module = SpikingModule(small_network(), num_classes=2, learning_rate=0.1, lr_scheduler="cosine")
        seen = []

        class Rates(pl.Callback):
            def on_train_batch_start(self, fitting, *_) -> None:
                seen.append(fitting.optimizers[0].param_groups[0]["lr"])

        fitting = trainer(Rates(), max_epochs=epochs)
        fitting.fit(module, loader(X, Y, 10), ckpt_path=path)
        fitting.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return seen

    rates(2)
    expected = [0.05 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates(4, tmp_path / "2.ckpt") == pytest.approx(expected[8:])


def test_a_silent_network_is_warned_of_in_the_first_step_of_a_fit_only(recwarn):
    def warned(threshold: float) -> list[str]:
        recwarn.clear()
        network = nn.Sequential(nn.Linear(2, 8), LIF(threshold=threshold), nn.Linear(8, 2))
        trainer(max_epochs=2).fit(SpikingModule(network, num_classes=2), loader(X, Y, 16))
        return [str(each.message) for each in recwarn if "may not learn" in str(each.message)]

    (message,) = warned(100.0)
    assert "no neuron spikes in 1" in message
    assert 'InitializationCheck(on_fail="rescale")' in message
    assert warned(0.05) == []


def test_a_look_at_the_first_step_changes_no_bit_of_training(monkeypatch):
    def weights() -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = SpikingModule(small_network(), SpikingBayes(), num_classes=2)
        trainer(max_epochs=2).fit(module, loader(X, Y, 16))
        return [parameter.detach().clone() for parameter in module.parameters()]

    watched = weights()
    monkeypatch.setattr(SpikingModule, "on_fit_start", lambda self: None)
    assert all(torch.equal(one, other) for one, other in zip(watched, weights(), strict=True))


def test_penalties_join_the_objective_and_are_logged():
    penalties = {"rate": ActivityPenalty(0.5, weight=10.0)}
    torch.manual_seed(0)
    network = small_network()
    plain = SpikingModule(network, num_classes=2)
    module = SpikingModule(network, num_classes=2, penalties=penalties)
    rates = run(nn.Sequential(*network[:2]), X).mean((0, 1))
    expected = plain.training_step((X, Y), 0) + 10 * ((rates - 0.5) ** 2).mean()
    torch.testing.assert_close(module.training_step((X, Y), 0), expected)
    fitting = trainer()
    fitting.fit(module, loader(X, Y, 40))
    assert fitting.callback_metrics["train/penalty/rate"].item() > 0
    assert "penalties" not in module.hparams


def test_a_penalty_of_a_method_that_cannot_add_it_is_refused():
    with pytest.raises(ValueError, match="ExpectationPropagation"):
        SpikingModule(
            nn.Sequential(nn.Linear(2, 4), LIF(), nn.Linear(4, 2)),
            ExpectationPropagation(),
            num_classes=2,
            penalties={"rate": ActivityPenalty(0.1)},
        )


@pytest.mark.parametrize("batch_first", [False, True])
def test_anytime_predictions_of_a_module_are_those_of_its_method(batch_first: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
    module = SpikingModule(network, num_classes=3, batch_first=batch_first).eval()
    x, y = torch.rand(5, 2, 4), torch.tensor([0, 2])
    given = x.transpose(0, 1) if batch_first else x
    expected = module.method.predict_anytime(module.network, x).mean
    for batch in ((given, y), [given], given):
        torch.testing.assert_close(module.predict_anytime(batch).mean, expected, rtol=0, atol=0)
        torch.testing.assert_close(module.predict_step(batch, 0).mean, expected[-1])
    assert not torch.allclose(expected[0], expected[-1])
