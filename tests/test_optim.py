from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.methods import ExpectationPropagation, SurrogateGradient
from lightning_snn.nn import LIF
from lightning_snn.optim import SGD, decay_weights_only, make_optimizer, optimizer_factory
from tests.support.training import time_first, trainer


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), LIF(0.5, learn_beta=True), nn.Flatten(), nn.Linear(12, 3)
    )


def test_only_weights_of_linear_layers_and_convolutions_decay():
    model = network()
    decayed, spared = decay_weights_only(model.parameters(), 0.01)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[-1].weight)]
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters())) == 7


def test_a_network_without_biases_has_one_group():
    (group,) = decay_weights_only([torch.zeros(2, 2)], 0.1)
    assert group["weight_decay"] == 0.1


def test_a_step_without_gradient_shrinks_weights_and_leaves_the_rest():
    model = network()
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    SGD(model.parameters(), lr=0.5, weight_decay=0.1).step()
    for name, value in model.named_parameters():
        factor = 0.95 if value.dim() > 1 else 1.0
        torch.testing.assert_close(value, factor * before[name], rtol=1e-6, atol=0)


def test_momentum_and_learning_rate_are_those_of_torch():
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    optimizers = [SGD(ours.parameters(), 0.1, 0.8, 0.0), torch.optim.SGD(theirs.parameters(), 0.1, 0.8)]
    for step in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1.0 + step)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_module_takes_the_class_itself():
    module = SpikingModule(network(), num_classes=3, optimizer=SGD)
    assert isinstance(module.configure_optimizers(), SGD)


def test_a_negative_decay_is_refused():
    with pytest.raises(ValueError, match="`weight_decay` to be a finite number of at least 0, but got -1"):
        SGD(network().parameters(), weight_decay=-1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("AdamW", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("torch.optim.RMSprop", torch.optim.RMSprop),
        ("lightning_snn.optim.SGD", SGD),
    ],
)
def test_an_optimizer_is_made_by_name(name, kind):
    parameters = list(network().parameters())
    optimizer = optimizer_factory(name, lr=0.25, weight_decay=0.5)(parameters)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamv", {}, r"Expected an optimizer of torch.optim \(ASGD, .*but got 'adamv'; did you mean Adam\w*\?"),
        ("torch.nn.Linear", {}, "but got 'torch.nn.Linear'"),
        ("absent.module.Adam", {}, "but got 'absent.module.Adam'"),
        ("adamw", {"learning_rat": 1}, "Expected options of AdamW, which takes lr, betas, .*but got `learning_rat`"),
        ("adamw", {"weight_deca": 1}, "did you mean weight_decay"),
    ],
)
def test_an_unknown_optimizer_or_option_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        optimizer_factory(name, **options)


def test_a_name_is_accepted_wherever_a_function_is():
    module = SpikingModule(network(), num_classes=3, optimizer=optimizer_factory("adamw", lr=0.25))
    assert isinstance(module.configure_optimizers(), torch.optim.AdamW)


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Tensor:
    """Take steps in which some weights have no gradient, as those after a silent layer."""
    for _ in range(8):
        weight.grad = torch.zeros_like(weight)
        weight.grad[0] = 1.0
        optimizer.step()
    return weight.detach()


OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    if kind not in (torch.optim.SparseAdam, torch.optim.LBFGS)  # need sparse gradients, and a closure
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_is_refused_in_float16_if_its_epsilon_makes_weights_nan(kind):
    def weight() -> nn.Parameter:
        return nn.Parameter(torch.ones(3, 4, dtype=torch.float16))

    alone = weight()
    finite = stepped(kind([alone]), alone).isfinite().all()
    given = weight()
    if finite:
        assert stepped(make_optimizer([given], kind), given).isfinite().all()
        return
    with pytest.raises(
        ValueError, match=rf"epsilon above 0 in float16, .* but got {kind.__name__} with eps=1e-.*eps=0.001"
    ):
        make_optimizer([given], kind)
    assert stepped(make_optimizer([given], partial(kind, eps=1e-3)), given).isfinite().all()


def test_adam_by_default_says_that_its_epsilon_is_raised_in_float16():
    weight = nn.Parameter(torch.ones(3, 4, dtype=torch.float16))
    with pytest.warns(UserWarning, match="epsilon of Adam, 1e-8, is 0 in float16, .* so it is 0.001"):
        optimizer = make_optimizer([weight])
    assert stepped(optimizer, weight).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_optimizer([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]).defaults["eps"] == 1e-8


def test_an_optimizer_of_another_package_keeps_its_own_epsilon():
    class Wide(torch.optim.Optimizer):
        """Holds its weights in float32."""

        def __init__(self, parameters) -> None:
            super().__init__(parameters, {"lr": 0.1, "eps": 1e-8})

    make_optimizer([nn.Parameter(torch.ones(2, dtype=torch.float16))], Wide)


class Seen(pl.Callback):
    """Keeps the learning rate of each training batch, those of a search apart."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class WithItsOwn(SurrogateGradient):
    """A method with an optimizer of its own."""

    def configure_optimizer(self, network: nn.Module) -> Optimizer:
        return torch.optim.SGD(network.parameters(), 0.25)


def batches() -> DataLoader:
    x = torch.rand(64, 4, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(64) % 3), 8, collate_fn=time_first)


def small(method: Any = None, **options: Any) -> SpikingModule:
    torch.manual_seed(0)
    return SpikingModule(nn.Sequential(nn.Linear(6, 16), LIF(), nn.Linear(16, 3)), method, num_classes=3, **options)


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "constant": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
    "in turn": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0) for _ in range(2)],
        milestones=[1000],
    ),
}


@pytest.mark.parametrize("options", [{}, {"optimizer": lambda parameters: torch.optim.SGD(parameters, 0.123)}])
@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
@pytest.mark.parametrize("tuned", [False, True])
def test_training_starts_from_the_learning_rate_that_was_found(
    tmp_path: Path, options: dict[str, Any], schedule: str | None, tuned: bool
) -> None:
    if schedule is not None:
        options = {**options, "lr_scheduler": {"scheduler": SCHEDULES[schedule], "interval": "step"}}
    module, seen, made = small(**options), Seen(), {"max_epochs": 8, "default_root_dir": tmp_path}
    search: Any = {"min_lr": 1e-4, "early_stop_threshold": None}
    if tuned:
        found = Tuner(trainer(**made)).lr_find(module, batches(), num_training=40, **search).suggestion()
        trainer(seen, **made).fit(module, batches())
    else:
        finder = LearningRateFinder(num_training_steps=40, **search)
        trainer(finder, seen, **made).fit(module, batches())
        found = finder.optimal_lr.suggestion()
    assert found not in (1e-3, 0.123)
    assert seen.rates == [pytest.approx(found)] * 64


@pytest.mark.parametrize("method", [ExpectationPropagation(), WithItsOwn()])
@pytest.mark.parametrize("tuned", [False, True])
def test_no_learning_rate_is_searched_for_a_method_with_its_own_optimizer(
    tmp_path: Path, method: Any, tuned: bool
) -> None:
    name = type(method).__name__
    made = {"max_epochs": 8, "default_root_dir": tmp_path}
    search = Tuner(trainer(**made)).lr_find if tuned else trainer(LearningRateFinder(), **made).fit
    with pytest.raises(ValueError, match=f"of its own for the learning rate finder, but got {name}"):
        search(small(method), batches())
