"""Checkpoints of a SpikingModule: what they say of the network, and what a module that differs is told."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import re
import sys
import threading
from typing import Any

import fsspec
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import LIF, SpikingModule
from lightning_snn.checkpoint import check_like_checkpoint, describe_module, describe_training
from lightning_snn.functional.surrogate import FastSigmoid
from lightning_snn.methods import (
    ActivityPenalty,
    ExpectationPropagation,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.methods.tasks import CrossEntropy, CustomLoss
from lightning_snn.nn import AdaptiveLIF, SynapticLIF
from lightning_snn.nn.description import describe_layer, describe_network, differences
from tests.support.event_order import loader, order_of_events
from tests.support.slow import others_slow
from tests.support.training import trainer

X, Y = order_of_events(8)


def network(**options) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), LIF(**options), nn.Linear(16, 2))


def saved(path, *arguments, **options) -> SpikingModule:
    module = SpikingModule(*arguments, **{"num_classes": 2, **options})
    fitting = trainer()
    fitting.fit(module, loader(X, Y))
    fitting.save_checkpoint(path)
    return module


def first(outputs: Tensor) -> Tensor:
    return outputs[0]


OTHERS = {
    "decay": (network(beta=0.5), None, {}, "network.1 (LIF): beta is 0.9 in the checkpoint and 0.5 here"),
    "threshold": (network(threshold=0.4), None, {}, "network.1 (LIF): threshold is 1.0 in the checkpoint and 0.4 here"),
    "reset": (
        network(reset="zero"),
        None,
        {},
        "network.1 (LIF): reset_mode is 'subtract' in the checkpoint",
    ),
    "order": (network(order="leak_then_reset"), None, {}, "network.1 (LIF): order is 'reset_then_leak' in the"),
    "surrogate": (
        network(surrogate=FastSigmoid(0.1)),
        None,
        {},
        "network.1 (LIF): surrogate is {'class': 'ArcT",
    ),
    "neuron": (nn.Sequential(nn.Linear(2, 16), AdaptiveLIF(), nn.Linear(16, 2)), None, {}, "network.1 is a LIF in the"),
    "layer": (
        nn.Sequential(nn.Linear(2, 16), LIF(), nn.Linear(16, 2), nn.ReLU()),
        None,
        {},
        "network.3 (ReLU) is",
    ),
    "readout": (network(), None, {"readout": "max"}, "task (Classification): readout is 'mean' in the checkpoint"),
    "function": (
        network(),
        None,
        {"readout": first},
        "task (Classification): readout is 'mean' in the",
    ),
    "method": (network(), NoisySpikes(), {}, "method is a SurrogateGradient in the checkpoint and a NoisySpikes here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_is_not_loaded_into_a_module_that_differs(name, tmp_path):
    other, method, options, line = OTHERS[name]
    module = saved(tmp_path / "one.ckpt", network())
    given = {"network": other, "method": method, **options}
    with pytest.raises(
        ValueError, match="Expected a module like that of the checkpoint, but this one differs"
    ) as caught:
        SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", **given)
    assert line in str(caught.value)
    if name != "method":  # whose parameters have other names
        loaded = SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", **given, strict=False)
        assert torch.equal(loaded.network[0].weight, module.network[0].weight)


def test_a_method_with_other_options_is_told(tmp_path):
    saved(tmp_path / "one.ckpt", network(), SpikingBayes(samples=3))
    path = tmp_path / "one.ckpt"
    with pytest.raises(ValueError, match=r"method \(SpikingBayes\): samples is 3 in the checkpoint and 0 here"):
        SpikingModule.load_from_checkpoint(path, network=network(), method=SpikingBayes())
    SpikingModule.load_from_checkpoint(path, network=network(), method=SpikingBayes(samples=3))


def test_a_fit_is_not_resumed_with_other_constants(tmp_path):
    saved(tmp_path / "one.ckpt", network())
    module = SpikingModule(network(beta=0.5), num_classes=2)
    with pytest.raises(ValueError, match=r"network.1 \(LIF\): beta is 0.9 in the checkpoint and 0.5 here"):
        trainer(max_epochs=2).fit(module, loader(X, Y), ckpt_path=tmp_path / "one.ckpt")
    module.strict_loading = False
    trainer(max_epochs=2).fit(module, loader(X, Y), ckpt_path=tmp_path / "one.ckpt")


@pytest.mark.parametrize("options", [{"learn_beta": True}, {"beta": [0.5] * 16}], ids=str)
def test_learned_and_per_channel_values_are_those_of_the_checkpoint(options, tmp_path):
    module = saved(tmp_path / "one.ckpt", network(**options))
    start = {name: torch.full((16,), 0.7).tolist() if name == "beta" else value for name, value in options.items()}
    loaded = SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", network=network(**start))
    assert torch.equal(torch.as_tensor(loaded.network[1].beta), torch.as_tensor(module.network[1].beta))


def test_a_checkpoint_without_network_says_what_to_pass(tmp_path):
    saved(tmp_path / "one.ckpt", network())
    with pytest.raises(ValueError, match=r"`network=` and `method=` of SpikingModule.load_from_checkpoint.*one.ckpt"):
        SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt")


class Net(nn.Sequential):
    """A network that a command line builds by its import path."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__(nn.Linear(2, hidden), LIF(), nn.Linear(hidden, 2))


def test_a_checkpoint_of_a_lightning_cli_rebuilds_the_network(tmp_path, monkeypatch):
    path = f"{Net.__module__}.{Net.__qualname__}"
    monkeypatch.setattr(sys, "argv", ["cli"])
    cli = LightningCLI(
        SpikingModule, run=False, save_config_callback=None, trainer_defaults={"logger": False, "accelerator": "cpu"},
        args=[f"--model.network={path}", "--model.network.hidden=8", "--model.num_classes=2"],
    )  # fmt: skip
    fitting = trainer()
    fitting.fit(cli.model, loader(X, Y))
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=rf"one.ckpt to name classes of .*names {path}. If you trust .* `allow="):
        SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt")
    loaded = SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", allow=[Net.__module__])
    assert torch.equal(loaded.network[0].weight, cli.model.network[0].weight)
    given = SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", network=Net(8))
    assert torch.equal(given.network[0].weight, cli.model.network[0].weight)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (LIF(), LIF(beta=0.8), r"1 \(LIF\): beta is 0.9 in the checkpoint and 0.8 here"),
        (LIF(), LIF(reset="zero"), r"1 \(LIF\): reset_mode is 'subtract' in the checkpoint and 'zero' here"),
        (SynapticLIF(), SynapticLIF(alpha=0.1), r"1 \(SynapticLIF\): alpha is .* in the checkpoint and 0.1 here"),
    ],
    ids=str,
)
def test_a_plain_state_dict_knows_the_constants_of_neurons(one, other, message, tmp_path):
    first, second = nn.Sequential(nn.Linear(2, 3), one), nn.Sequential(nn.Linear(2, 3), other)
    torch.save(first.state_dict(), tmp_path / "one.pt")
    state = torch.load(tmp_path / "one.pt", weights_only=True)
    assert set(state) == {"0.weight", "0.bias"}
    with pytest.raises(RuntimeError, match=message):
        second.load_state_dict(state)
    assert re.fullmatch(message, second.load_state_dict(state, strict=False).unexpected_keys[0])
    copy.deepcopy(first).load_state_dict(state)
    second.load_state_dict(dict(state))  # without metadata there is nothing to compare


def test_a_network_is_described_by_plain_data():
    class Own(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale, self.activation, self.steps = scale, nn.functional.relu, (1, 2)
            self.table = torch.zeros(3)

    described = describe_layer(Own(0.5))
    assert described == {"class": "Own", "scale": 0.5, "activation": "relu", "steps": [1, 2]}
    one, other = (describe_network(nn.Sequential(Own(scale), nn.Dropout(0.5))) for scale in (0.5, 0.7))
    assert differences(one, one) == []
    assert differences(one, other) == ["0 (Own): scale is 0.5 in the checkpoint and 0.7 here"]


def test_a_method_can_be_compared_on_one_network():
    given = network()
    weight = given[0].weight.clone()
    modules = [SpikingModule(given, method, num_classes=2) for method in (SurrogateGradient(), NoisySpikes())]
    for module in modules:
        trainer().fit(module, loader(X, Y))
    assert torch.equal(given[0].weight, weight)
    assert all(not torch.equal(module.network[0].weight, weight) for module in modules)


def test_a_network_that_holds_the_result_of_a_computation_is_copied():
    given = network()
    given[0].cache = given[0].weight * 2
    module = SpikingModule(given, num_classes=2)
    assert torch.equal(module.network[0].cache, given[0].cache)
    assert not module.network[0].cache.requires_grad


def test_a_network_that_cannot_be_copied_is_refused():
    given = network()
    given.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"`network` to be a Sequential that `copy.deepcopy` can copy"):
        SpikingModule(given, num_classes=2)


METHODS: dict[str, Any] = {
    "SurrogateGradient": SurrogateGradient,
    "RateBackprop": RateBackprop,
    "SpikingBayes": SpikingBayes,
    "NoisySpikes": NoisySpikes,
    "TimeToFirstSpike": lambda: TimeToFirstSpike((0.0, 1.1)),
    "ExpectationPropagation": ExpectationPropagation,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Any]:
    """Return path and module of a checkpoint of every method."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: (folder / f"{name}.ckpt", saved(folder / f"{name}.ckpt", network(), make())) for name, make in
            METHODS.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("trained", "given"),
    others_slow(
        itertools.product(METHODS, METHODS),
        fast=[*zip(METHODS, METHODS, strict=True), *itertools.pairwise([*METHODS, next(iter(METHODS))])],
    ),
)
def test_a_checkpoint_of_a_method_is_loaded_into_that_method_only(trained, given, checkpoints):
    path, module = checkpoints[trained]
    options = {"network": network(), "method": METHODS[given]()}
    if trained == given:
        loaded = SpikingModule.load_from_checkpoint(path, **options)
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())
        return
    with pytest.raises(ValueError, match=f"method is a {trained} in the checkpoint and a {given} here"):
        SpikingModule.load_from_checkpoint(path, **options)
    fitting = trainer(max_epochs=2)
    with pytest.raises(ValueError, match=f"method is a {trained} in the checkpoint and a {given} here"):
        fitting.fit(SpikingModule(num_classes=2, **options), loader(X, Y), ckpt_path=path)
    with pytest.raises(ValueError, match=f"method is a {trained} in the checkpoint and a {given} here"):
        trainer().validate(SpikingModule(num_classes=2, **options), loader(X, Y), ckpt_path=path, verbose=False)
    loaded = SpikingModule.load_from_checkpoint(path, **options, strict=False).state_dict()
    held = module.state_dict()
    assert all(torch.equal(loaded[key], held[key]) for key in loaded.keys() & held.keys())


OPTIONS: dict[Any, dict[str, Any]] = {
    SurrogateGradient: {"checkpoint": 4, "truncate": 8},
    RateBackprop: {"window": "step", "streaming": True, "grad_scale": "paper", "check_drift": False, "link": True},
    NoisySpikes: {
        "std": 0.3, "profile": "constant", "lam": 0.5, "estimator": "agr", "noise_mode": "step", "samples": 2,
        "sample_memory": 1.0,
    },
    SpikingBayes: {
        "lam": 0.2, "kl_weight": 0.1, "mean_epochs": 1.0, "warmup_epochs": 2.0, "gain": 1.0, "kappa": 1.0,
        "prior_scale": 1.0, "samples": 2, "keep_weights": True, "train_size": 10, "estimator": "agr",
        "noise_mode": "step", "bias_weight": 0.1, "bias_form": "hinge", "bias_epochs": 3.0, "sampling": "weights",
        "sample_memory": 1.0, "recurrent_posterior": False,
    },
    TimeToFirstSpike: {
        "input_range": (0.0, 2.0), "input_shape": (2,), "activity_penalty": 0.1, "gamma": 2.0, "overflow": "clip",
        "skips": "relay", "time_domain": True,
    },
    ExpectationPropagation: {
        "weights": ["sign", "gaussian"], "activation": "sigmoid", "output_activation": "sigmoid",
        "prior_variance": 1.0, "prior_split": 0.1, "amplitude": 2.0, "levels": (0.0, 1.0), "iterations": 2,
        "damping": 0.5, "solver_iterations": 2, "step_size": 0.5, "memory": "adf", "noise_variance": 0.1,
        "learn_noise": True, "deployment": "hard", "samples": 2, "fading": 0.5, "output_noise": 0.5, "latch": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(("method", "option"), [(method, option) for method in OPTIONS for option in OPTIONS[method]])
def test_every_option_of_a_method_is_in_its_checkpoints(method, option):
    needed = {"output_activation": "winner"} if option == "output_noise" else {}
    described = describe_module(network(), method(**needed))
    other = describe_module(network(), method(**needed, **{option: OPTIONS[method][option]}))
    check_like_checkpoint(described, describe_module(network(), method(**needed)))
    with pytest.raises(ValueError, match=rf"\({method.__name__}\): {option} is .* in the checkpoint and .* here"):
        check_like_checkpoint(described, other)
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == other


def test_the_options_above_are_all_that_methods_have():
    for method, options in OPTIONS.items():
        assert list(inspect.signature(method).parameters) == list(options)


def test_a_method_that_has_trained_describes_itself_as_before():
    for make in METHODS.values():
        module = SpikingModule(network(), make(), num_classes=2)
        described = describe_module(network(), module.method)
        trainer(max_epochs=2).fit(module, loader(X, Y))
        assert describe_module(network(), module.method) == described


def squared(spikes: Tensor) -> Tensor:
    return spikes.square().mean()


@pytest.mark.parametrize(
    ("penalties", "line"),
    [
        (None, r"penalties is {'rate': {'class': 'ActivityPenalty', .*}} in the checkpoint and {} here"),
        ({"rate": ActivityPenalty(0.2)}, r"'target_rate': 0.1, .* in the checkpoint .*'target_rate': 0.2"),
        ({"rate": squared}, r"and {'rate': 'squared'} here"),
        ({"other": ActivityPenalty(0.1)}, r"and {'other': {'class': 'Act"),
    ],
    ids=["none", "another target", "a function", "another name"],
)
def test_a_fit_is_resumed_with_its_penalties_only(penalties, line, tmp_path):
    path = tmp_path / "one.ckpt"
    trained = saved(path, network(), penalties={"rate": ActivityPenalty(0.1)})

    def module(**options) -> SpikingModule:
        return SpikingModule(network(), num_classes=2, **options)

    with pytest.raises(ValueError, match=rf"training \(SpikingModule\): .*{line}"):
        trainer(max_epochs=2).fit(module(penalties=penalties), loader(X, Y), ckpt_path=path)
    trainer(max_epochs=2).fit(module(penalties={"rate": ActivityPenalty(0.1)}), loader(X, Y), ckpt_path=path)
    # predictions do not depend on them
    trainer().validate(module(penalties=penalties), loader(X, Y), ckpt_path=path, verbose=False)
    loaded = SpikingModule.load_from_checkpoint(path, network=network(), penalties=penalties)
    assert torch.equal(loaded.network[0].weight, trained.network[0].weight)
    relaxed = module(penalties=penalties)
    relaxed.strict_loading = False
    trainer(max_epochs=2).fit(relaxed, loader(X, Y), ckpt_path=path)


def test_a_checkpoint_of_an_earlier_release_is_loaded(tmp_path):
    path = tmp_path / "one.ckpt"
    saved(path, network(), penalties={"rate": ActivityPenalty(0.1)})
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["lightning_snn"]["training"]
    torch.save(checkpoint, path)
    trainer(max_epochs=2).fit(SpikingModule(network(), num_classes=2), loader(X, Y), ckpt_path=path)
    del checkpoint["lightning_snn"]
    torch.save(checkpoint, path)
    trainer(max_epochs=2).fit(SpikingModule(network(), num_classes=2, readout="max"), loader(X, Y), ckpt_path=path)


@pytest.mark.parametrize("batch_first", [True, False, None])
def test_a_loaded_module_reads_batches_as_the_saved_one(batch_first, tmp_path):
    data = DataLoader([(X.transpose(0, 1), Y)], batch_size=None) if batch_first else loader(X, Y)
    module = SpikingModule(network(), num_classes=2, batch_first=batch_first, pairs=[(0, 1)])
    fitting = trainer()
    fitting.fit(module, data)
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    loaded = SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", network=network())
    assert loaded.batch_first is batch_first
    assert "pair_accuracy" in loaded.val_metrics


def test_descriptions_of_training_are_plain_data():
    task = CustomLoss(squared, CrossEntropy(0.1, [1, 2], "sum"))
    assert describe_training({"rate": ActivityPenalty(0.1, 2.0), "squares": squared}, task) == {
        "training": {
            "class": "SpikingModule",
            "penalties": {
                "rate": {"class": "ActivityPenalty", "target_rate": 0.1, "weight": 2.0},
                "squares": "squared",
            },
            "task": {
                "class": "CustomLoss",
                "function": "squared",
                "task": {
                    "class": "CrossEntropy",
                    "label_smoothing": 0.1,
                    "class_weights": [1.0, 2.0],
                    "readout": "sum",
                },
            },
        }
    }


STRANGE = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "network": {"class_path": "antigravity.Net"}}


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
@pytest.mark.parametrize("source", ["path", "text", "url", "open file"])
def test_a_checkpoint_imports_nothing_that_is_not_allowed(key, source, tmp_path):
    """Also not by the keys of Lightning's first versions, which it still reads."""
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.0.0", key: STRANGE}, tmp_path / "one.ckpt")
    given = {
        "path": tmp_path / "one.ckpt",
        "text": str(tmp_path / "one.ckpt"),
        "url": "memory://strange/one.ckpt",
        "open file": io.BytesIO((tmp_path / "one.ckpt").read_bytes()),
    }[source]
    if source == "url":
        with fsspec.open(given, "wb") as file:
            file.write((tmp_path / "one.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"to name classes of .*names antigravity.Net. .* `allow=\['antigravity'\]`"):
        SpikingModule.load_from_checkpoint(given)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["options.yaml", "options.csv"])
def test_options_in_another_file_import_nothing_that_is_not_allowed(name, tmp_path):
    saved(tmp_path / "one.ckpt", network())
    text = yaml.safe_dump(STRANGE) if name == "options.yaml" else "".join(f'{k},"{v}"\n' for k, v in STRANGE.items())
    (tmp_path / name).write_text(text if name == "options.yaml" else f"key,value\n{text}")
    with pytest.raises(ValueError, match=r"names antigravity.Net"):
        SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", hparams_file=tmp_path / name)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("content", [b"", b"junk" * 50, "cut", "flipped", "a list"])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    path = tmp_path / "one.ckpt"
    module = saved(path, network())
    whole = path.read_bytes()
    if content == "a list":
        torch.save([1, 2], path)
    else:
        weight = whole.index(module.network[0].weight.detach().numpy().tobytes())
        changed = {"cut": whole[:weight], "flipped": whole[:weight] + b"\xff\xfe" + whole[weight + 2 :]}
        path.write_bytes(changed.get(content, content) if isinstance(content, str) else content)
    with pytest.raises(
        ValueError, match=r"^Expected .*one.ckpt to be a (file of torch.save, but it is trunc|checkpoint)"
    ):
        SpikingModule.load_from_checkpoint(path, network=network())
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"^Expected .*one.ckpt to be a file of torch.save, but it does not"):
        SpikingModule.load_from_checkpoint(path, network=network())


def test_an_open_checkpoint_is_loaded(tmp_path):
    module = saved(tmp_path / "one.ckpt", network())
    with open(tmp_path / "one.ckpt", "rb") as file:
        loaded = SpikingModule.load_from_checkpoint(file, network=network())
    assert torch.equal(loaded.network[0].weight, module.network[0].weight)
