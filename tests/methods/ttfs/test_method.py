from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.methods import SurrogateGradient
from lightning_snn.methods.ttfs import FirstSpike, TimeToFirstSpike
from lightning_snn.methods.ttfs.windows import latency
from tests.support.event_order import loader
from tests.support.training import trainer

CLASSES = 3


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = (nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(16, CLASSES)).to(dtype)


def batch(size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, size, 6, generator=generator, dtype=torch.float64)
    return x, (x[0, :, 0] > 0.5).long() + (x[0, :, 1] > 0.5).long()


def neurons(module: nn.Module) -> list[FirstSpike]:
    return [part for part in module.modules() if isinstance(part, FirstSpike)]


@pytest.mark.parametrize("time_domain", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_that_of_the_relu_network(optimizer: type[torch.optim.Optimizer], time_domain: bool):
    method, plain = TimeToFirstSpike(time_domain=time_domain), SurrogateGradient()
    relu = network()
    spiking = method.prepare(relu)
    assert len(neurons(spiking)) == 2
    assert all(layer.time_domain == time_domain for layer in neurons(spiking))
    optimizers = [optimizer(each.parameters(), 0.01) for each in (relu, spiking)]
    losses = []
    for step in range(50):
        x, y = batch(seed=step)
        for each, rule, steps in zip((relu, spiking), (plain, method), optimizers, strict=True):
            taken = rule.training_step(each, x, y)
            steps.zero_grad()
            taken.objective.backward()
            steps.step()
            losses.append(taken.loss)
    vectors = [nn.utils.parameters_to_vector(each.parameters()) for each in (relu, spiking)]
    torch.testing.assert_close(vectors[1], vectors[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(losses[1::2], losses[::2], rtol=0, atol=1e-12)
    assert (vectors[0] - nn.utils.parameters_to_vector(network().parameters())).abs().max() > 0.01
    x, _ = batch(seed=99)
    found, expected = method.predict(spiking.eval(), x).mean, plain.predict(relu, x).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_penalty_is_the_sum_of_hidden_remaining_times_of_a_sample():
    x, y = batch()
    relu = network()
    method = TimeToFirstSpike(activity_penalty=0.1)
    spiking = method.prepare(relu)
    hidden = relu[:2](x[0])
    expected = hidden.sum(1) + relu[:4](x[0]).sum(1)
    step = method.training_step(spiking, x, y)
    assert step.objective.item() == pytest.approx((step.loss + 0.1 * expected.mean()).item(), rel=1e-12)
    repeated = method.training_step(spiking, x.repeat(3, 1, 1), y)
    assert repeated.objective.item() == pytest.approx(step.objective.item(), rel=1e-12)
    assert not any(layer._forward_hooks for layer in neurons(spiking))


def test_the_penalty_makes_spikes_fewer():
    def spikes(penalty: float) -> float:
        method = TimeToFirstSpike(activity_penalty=penalty)
        spiking = method.prepare(network())
        optimizer = torch.optim.Adam(spiking.parameters(), 0.01)
        for step in range(100):
            optimizer.zero_grad()
            method.training_step(spiking, *batch(seed=step)).objective.backward()
            optimizer.step()
        found = []
        for layer in neurons(spiking):
            layer.register_forward_hook(lambda _, inputs, output: found.append((output > 0).double().mean()))
        spiking(batch(200, seed=1000)[0][0])
        return torch.stack(found).mean().item()

    assert spikes(0.03) < 0.5 * spikes(0.0)


def test_windows_grow_before_the_next_step_and_their_use_is_logged():
    method = TimeToFirstSpike(gamma=4.0)
    spiking = method.prepare(network())
    for layer in neurons(spiking):
        layer.window.fill_(0.1)
    x, y = batch()
    first = method.training_step(spiking, x, y)
    used = [layer.window.item() / 4 for layer in neurons(spiking)]
    assert first.metrics["window_used"].item() == pytest.approx(max(used) / 0.1, rel=1e-6)
    assert first.metrics["latency"].item() == pytest.approx(latency(spiking).item(), rel=1e-6)
    assert latency(spiking).item() == pytest.approx(1 + 4 * sum(used), rel=1e-12)
    second = method.training_step(spiking, x, y)
    assert second.metrics["window_used"].item() == pytest.approx(0.25, rel=1e-6)


def test_without_gamma_windows_stay_and_clipping_is_counted():
    method = TimeToFirstSpike(gamma=None, overflow="clip")
    spiking = method.prepare(network())
    for layer in neurons(spiking):
        layer.window.fill_(0.2)
    x, y = batch()
    step = method.training_step(spiking, x, y)
    assert all(layer.window == 0.2 for layer in neurons(spiking))
    assert "window_used" not in step.metrics
    assert 0 < step.metrics["overflow_fraction"] < 1


def test_frozen_windows_stay_though_the_method_lets_windows_grow():
    method = TimeToFirstSpike()
    spiking = method.prepare(network())
    for layer in neurons(spiking):
        layer.adaptive = False
        layer.constraints = TimeConstraints(jitter=0.01)
    method.training_step(spiking, *batch()).objective.backward()
    assert all(layer.window == 1 for layer in neurons(spiking))


def test_leaky_neurons_become_relu_and_the_given_network_stays():
    given = nn.Sequential(nn.Linear(6, 8), LIF(0.9), nn.Linear(8, 3))
    text = repr(given)
    mapped = TimeToFirstSpike().prepare(given)
    assert repr(given) == text
    x = torch.rand(4, 6)
    torch.testing.assert_close(mapped(x), given[2](torch.relu(given[0](x))), rtol=0, atol=1e-6)


def test_a_network_of_first_spikes_is_taken_as_it_is():
    given = nn.Sequential(nn.Linear(6, 8), FirstSpike(7.0), nn.Linear(8, 3))
    prepared = TimeToFirstSpike(time_domain=True).prepare(given)
    assert prepared is not given
    assert prepared[1].window == 7
    assert (given[1].time_domain, prepared[1].time_domain) == (False, True)
    again = TimeToFirstSpike().prepare(TimeToFirstSpike().prepare(network()))
    x = batch()[0][0]
    assert torch.equal(again(x), network()(x))


def test_the_shape_of_images_is_required():
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    with pytest.raises(ValueError, match="`input_shape` to be the shape of a sample .* starts with Conv2d"):
        TimeToFirstSpike().prepare(convolutions)
    spiking = TimeToFirstSpike(input_range=(-2.0, 3.0), input_shape=(1, 8, 8)).prepare(convolutions)
    x = 5 * torch.rand(2, 1, 8, 8) - 2
    torch.testing.assert_close(spiking(x), convolutions(x), rtol=1e-5, atol=1e-5)


def test_a_network_without_equivalent_is_refused_by_name():
    with pytest.raises(ValueError, match="Tanh"):
        TimeToFirstSpike().prepare(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))


def test_it_trains_in_a_stock_trainer_and_is_checkpointed_with_its_windows(tmp_path):
    x, y = batch(256)
    data = loader(x.float(), y)
    module = SpikingModule(network(torch.float32), TimeToFirstSpike(), num_classes=CLASSES, learning_rate=0.01)
    fitting = trainer(max_epochs=30)
    fitting.fit(module, data, data)
    assert fitting.callback_metrics["val/accuracy"] > 0.9
    assert fitting.callback_metrics["train/latency"] > 3
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    loaded = SpikingModule.load_from_checkpoint(
        tmp_path / "one.ckpt", network=network(torch.float32), method=TimeToFirstSpike(), weights_only=True
    )
    assert latency(loaded) == latency(module)
    assert latency(module) > 3
    assert torch.equal(loaded.eval()(x.float()), module.eval()(x.float()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_range": (1.0, 1.0)}, "`input_range`"),
        ({"input_range": (1.0, 0.0)}, "`input_range`"),
        ({"input_shape": (3, 0)}, "`input_shape` to be an integer of at least 1"),
        ({"activity_penalty": -1.0}, "`activity_penalty` to be a finite number of at least 0"),
        ({"gamma": 0.5}, "`gamma` to be a finite number of at least 1"),
        ({"overflow": "wrap"}, "`overflow` to be one of"),
        ({"skips": "jump"}, "`skips` to be one of"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        TimeToFirstSpike(**arguments)
