"""The difference between the gradients through time and of rates: its terms, its prediction by windows, and advice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn import figures, run
from lightning_snn.functional.dynamics import RESETS
from lightning_snn.functional.rate_windows import joined_weights, lost_credit, walk_share, white_share
from lightning_snn.functional.spike import spike
from lightning_snn.functional.surrogate import Sigmoid
from lightning_snn.methods.rate import GradientDecomposition, WindowErrors, gradient_alignment, gradient_decomposition
from lightning_snn.methods.rate.decomposed import recommend
from lightning_snn.networks import VGG, ResNet
from lightning_snn.nn import LIF, AdaptiveLIF, RecurrentLIF, SynapticDelays, sequence_lengths

STEPS, SAMPLES, INPUTS, HIDDEN, CLASSES = 20, 16, 40, 48, 10
Y = torch.arange(SAMPLES) % CLASSES


def network(make: Callable[[], nn.Module], depth: int = 2, *norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (INPUTS, *(depth - 1) * (HIDDEN,)):
        layers += [nn.Linear(inputs, HIDDEN), *(kind(HIDDEN) for kind in norm), make()]
    found = nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES)).double()
    for layer in found.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.6 / layer.in_features**0.5)
    return found


def lif(beta: float, **options: object) -> Callable[[], nn.Module]:
    return lambda: LIF(beta, **{"reset": "subtract", "detach_reset": True, "surrogate": Sigmoid(), **options})


def events(steps: int = STEPS) -> Tensor:
    """A pattern that moves over the inputs."""
    torch.manual_seed(1)
    place = torch.arange(INPUTS) - torch.rand(SAMPLES, 1) * INPUTS
    position = (place - torch.arange(steps)[:, None, None] * INPUTS / steps) % INPUTS
    return (torch.rand(steps, SAMPLES, INPUTS) < 0.6 * torch.exp(-0.5 * ((position - 5) / 2) ** 2) + 0.05).double()


def static() -> Tensor:
    return events(1).expand(STEPS, -1, -1)


def noise() -> Tensor:
    return torch.randn(STEPS, SAMPLES, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def of_events() -> dict[float, GradientDecomposition]:
    """Decompositions of two hidden layers on events, with all lags, by decay."""
    return {beta: gradient_decomposition(network(lif(beta)), (events(), Y), lags=STEPS) for beta in (0.2, 0.5, 0.8)}


@pytest.mark.parametrize(("depth", "input", "beta"), list(product((2, 4), (static, events), (0.2, 0.8))))
def test_the_terms_add_up_to_the_difference(depth: int, input: Callable[[], Tensor], beta: float):
    found = gradient_decomposition(network(lif(beta), depth), (input(), Y), measure=False).layers
    assert all(each.residual <= 1e-12 for each in found.values())
    assert found["0"].error > 1e-3
    # neither term is enough by itself below the last hidden layer
    assert found["0"].remainder > 1e-3
    if input is events:
        assert found["0"].covariance > 0.1


def _residuals(found: GradientDecomposition) -> float:
    assert found.layers["all"].error > 0.01
    return max(each.residual for each in found.layers.values() if not math.isnan(each.residual))


@pytest.mark.parametrize(("reset", "detach"), list(product(RESETS, (True, False))))
def test_the_terms_add_up_for_every_reset_and_for_learned_parameters(reset: str, detach: bool):
    options = {"reset": reset, "detach_reset": detach, "threshold": 0.8, "learn_beta": True, "learn_threshold": True}
    found = gradient_decomposition(network(lif(0.5, **options)), (events(10), Y), measure=False)
    assert {"0", "1", "2", "3", "4", "all"} == set(found.layers)
    assert _residuals(found) <= 1e-12


@pytest.mark.parametrize(
    "model",
    [
        lambda: network(lambda: AdaptiveLIF(0.7, 0.5, rho=0.8, strength=0.3)),
        lambda: network(lif(0.5), 2, nn.BatchNorm1d),
        lambda: network(lif(0.5), 2, nn.BatchNorm1d).eval(),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 5, 4)), VGG((2, 5, 4), CLASSES, (8, "M", 12))).double(),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 5, 4)), ResNet((2, 5, 4), CLASSES, (6, 8), 1)).double(),
    ],
    ids=["AdaptiveLIF", "normalized", "normalized, evaluation", "VGG with maxima", "ResNet"],
)
def test_the_terms_add_up_for_other_layers(model: Callable[[], nn.Module]):
    torch.manual_seed(0)
    assert _residuals(gradient_decomposition(model(), (events(5), Y), measure=False)) <= 1e-12


def test_the_terms_are_those_of_an_unrolled_network():
    """Every error and derivative by autograd of single steps of neurons that are written out here."""
    steps, beta, threshold = 6, 0.7, 1.0
    model, x = network(lif(beta)), events(steps)
    weights = [model[index].weight.detach().clone().requires_grad_() for index in (0, 2, 4)]
    biases = [model[index].bias.detach() for index in (0, 2, 4)]

    def neurons(currents: list[Tensor]) -> list[Tensor]:
        membrane, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            membrane = beta * membrane + current
            spikes.append(spike(membrane, threshold, Sigmoid()))
            membrane = membrane - threshold * spikes[-1].detach()
        return spikes

    values = [list(x)]
    currents: list[list[Tensor]] = []
    for weight, bias in zip(weights[:2], biases[:2], strict=True):
        currents.append([value @ weight.T + bias for value in values[-1]])
        values.append(neurons(currents[-1]))
    outputs = torch.stack([value @ weights[2].T + biases[2] for value in values[-1]])
    loss = F.cross_entropy(outputs.mean(0), Y)
    flat = [*currents[0], *currents[1], *values[1], *values[2], *weights]
    errors = torch.autograd.grad(loss, flat)
    delta = [torch.stack(errors[:steps]), torch.stack(errors[steps : 2 * steps])]
    eta = [torch.stack(errors[2 * steps : 3 * steps]), torch.stack(errors[3 * steps : 4 * steps])]
    exact = errors[4 * steps :]

    below = torch.zeros(SAMPLES, HIDDEN, dtype=torch.float64)  # E of the layer above, carried through its weights
    for layer in (1, 0):
        leaves = [current.detach().requires_grad_() for current in currents[layer]]
        options = {"retain_graph": True, "materialize_grads": True}
        answers = [torch.stack(torch.autograd.grad(each.sum(), leaves, **options)) for each in neurons(leaves)]
        sums = torch.stack([answer.sum(0) for answer in answers])
        presynaptic = torch.stack([value.detach() for value in values[layer]])
        varying = delta[layer] - delta[layer].mean(0), presynaptic - presynaptic.mean(0)
        covariance = torch.einsum("tbi,tbj->ij", *varying)
        lost = ((eta[layer] - eta[layer].mean(0)) * (sums - sums.mean(0))).sum(0) + sums.mean(0) * below
        remainder = torch.einsum("bi,bj->ij", lost, presynaptic.mean(0))
        below = lost @ weights[layer].detach()
        # without the biases, which the decomposition has in the same vector
        model[2 * layer].bias.requires_grad_(False)
        found = gradient_decomposition(model, (x, Y), measure=False, lags=steps).layers[str(2 * layer)]
        norm = exact[layer].norm()
        assert found.covariance == pytest.approx(float(covariance.norm() / norm), rel=1e-10)
        assert found.remainder == pytest.approx(float(remainder.norm() / norm), rel=1e-10, abs=1e-14)
        assert found.error == pytest.approx(float((covariance + remainder).norm() / norm), rel=1e-10)
        for lag in range(steps):
            late = torch.zeros_like(delta[layer])
            for step in range(lag, steps):
                late[step - lag] = eta[layer][step] * answers[step][step - lag]
            share = (torch.einsum("tbi,tbj->ij", late - late.mean(0), varying[1]) * covariance).sum()
            assert found.lags[lag] == pytest.approx(float(share / covariance.square().sum()), abs=1e-10)


def test_one_hidden_layer_differs_by_the_covariance_alone_unless_errors_vary_in_time(of_events):
    last = of_events[0.2].layers["2"]
    assert last.covariance_cosine == pytest.approx(1, abs=1e-12)
    assert last.remainder < 1e-12
    assert of_events[0.2].layers["4"].error < 1e-12  # the readout
    weights = torch.linspace(0, 2, STEPS, dtype=torch.float64)[:, None]

    def late(outputs: Tensor, y: Tensor) -> Tensor:
        return (weights * torch.stack([F.cross_entropy(each, y, reduction="none") for each in outputs])).mean()

    varying = gradient_decomposition(network(lif(0.2)), (events(), Y), late, measure=False).layers
    assert varying["2"].remainder > 0.01
    assert varying["4"].covariance > 0.01
    assert max(each.residual for each in varying.values()) <= 1e-12


def test_static_input_has_no_covariance_in_the_first_layer():
    first = gradient_decomposition(network(lif(0.2)), (static(), Y), measure=False).layers["0"]
    assert first.covariance < 1e-12
    assert first.remainder == pytest.approx(first.error, rel=1e-12)
    assert all(math.isnan(share) for share in first.lags)


def test_shares_by_lag_fall_with_the_decay(of_events):
    for beta in (0.2, 0.5, 0.8):
        for name in ("0", "2", "all"):
            lags = of_events[beta].layers[name].lags
            assert sum(lags) == pytest.approx(1, abs=1e-12)
            assert all(after < before + 0.01 for before, after in pairwise(lags[:6]))
            assert lags[0] == pytest.approx({0.2: 0.92, 0.5: 0.6, 0.8: 0.27}[beta], abs=0.1)


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
def test_linked_errors_are_predicted(of_events, beta: float):
    layers = of_events[beta].layers
    for errors in layers["2"].windows.values():  # exactly, under a mean readout
        assert errors.linked_predicted == pytest.approx(errors.linked_measured, rel=1e-9, abs=1e-12)
    for count, errors in layers["0"].windows.items():
        assert errors.linked_predicted == pytest.approx(errors.linked_measured, rel=0.15, abs=1e-12)
        assert count == STEPS or errors.linked_measured > 0.01
    measured = [errors.linked_measured for errors in layers["all"].windows.values()]
    assert all(after < before for before, after in pairwise(measured))


@pytest.mark.parametrize(("beta", "one", "two"), [(0.2, 0.19, 0.34), (0.5, 0.47, 0.72), (0.8, 0.75, 0.94)])
def test_detached_windows_lose_the_credit_of_the_decays(of_events, beta: float, one: float, two: float):
    layers = of_events[beta].layers
    weights = [beta**lag for lag in range(STEPS)]
    for name, above, expected in (("2", 1, one), ("0", 2, two)):
        of_last = layers[name].windows[STEPS]
        # neurons with a detached reset that subtracts, whose slopes vary, against constant slopes
        formula = lost_credit(joined_weights([weights] * above, STEPS), STEPS, STEPS)
        assert formula == pytest.approx(expected, abs=0.01)
        assert of_last.lost_credit == pytest.approx(formula, abs=0.01)
        assert of_last.detached_measured == pytest.approx(formula, abs=0.04)
    for errors in layers["0"].windows.values():
        assert errors.detached_predicted == pytest.approx(errors.detached_measured, abs=0.06)


def test_windows_remove_little_of_the_covariance_with_white_noise():
    last = gradient_decomposition(network(lif(0.2)), (noise(), Y)).layers["2"].windows
    for errors in last.values():
        assert errors.linked_measured == pytest.approx(errors.white, rel=0.1, abs=1e-12)
    assert last[5].linked_measured > 4 * last[5].walk


def test_slow_input_is_nearer_to_a_random_walk():
    slow = noise().cumsum(0) / STEPS**0.5
    last = gradient_decomposition(network(lif(0.2)), (slow, Y)).layers["2"].windows
    for count in (4, 5):
        assert last[count].linked_measured < 0.5 * (last[count].white + last[count].walk)
        assert last[count].linked_measured > last[count].walk


@pytest.mark.parametrize("link", [True, False])
def test_measured_errors_are_those_of_the_alignment(of_events, link: bool):
    found = gradient_alignment(network(lif(0.5)), (events(), Y), None, 5, False, link)
    for name, each in found.items():
        errors = of_events[0.5].layers[name].windows[5]
        expected = (1 + each.norm_ratio**2 - 2 * each.norm_ratio * each.cosine) ** 0.5
        assert (errors.linked_measured if link else errors.detached_measured) == pytest.approx(expected, abs=1e-7)


def _errors(*values: float) -> dict[int, WindowErrors]:
    """With 1, 2 and 4 windows: the predictions with links, and, larger by the lost credit, without."""
    lost = (0.0, 0.3, 0.6)
    return {
        count: WindowErrors(value, math.nan, value + credit, math.nan, value, value, credit)
        for count, value, credit in zip((1, 2, 4), values, lost, strict=True)
    }


@pytest.mark.parametrize(
    ("errors", "link", "windows", "reason"),
    [
        (_errors(0.2, 0.1, 0.0), True, 1, "one window has a relative error of at most 0.3: 0.20"),
        (_errors(0.8, 0.25, 0.0), True, 2, "the fewest windows with .*: 0.25, and 0.80 with one window"),
        (_errors(0.8, 0.5, 0.0), True, 4, "only one window per step .*SurrogateGradient"),
        (_errors(0.5, 0.4, 0.0), False, 1, r"more windows add to the 0.50 of one: K = 4 loses 0.60 of the credit"),
        (_errors(0.9, 0.4, 0.2), False, 2, r"none has .*; 0.70, with 0.30 of the credit lost at borders, and 0.90"),
        (_errors(math.nan, math.nan, math.nan), True, 1, "the gradient through time is 0"),
    ],
)
def test_the_fewest_windows_within_the_tolerance_are_recommended(errors, link, windows, reason):
    found = recommend(errors, 4, link, 0.3)
    assert found.windows == windows
    assert pytest.approx(found.error, nan_ok=True) == (errors[windows][0 if link else 2])
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.reason)


def test_large_decays_are_recommended_links(of_events):
    assert of_events[0.8].linked.windows == 2
    assert of_events[0.8].detached.windows == 1
    measured = of_events[0.8].layers["all"].windows[2]
    assert of_events[0.8].linked.error == measured.linked_measured <= 0.3
    assert "K = 20 loses 0.88 of the credit" in of_events[0.8].detached.reason


def test_predictions_need_no_runs_with_windows():
    model = network(lif(0.8))
    predicted = gradient_decomposition(model, (events(), Y), windows=[2, 5], measure=False)
    measured = gradient_decomposition(model, (events(), Y), windows=[5, 2])
    for name, each in predicted.layers.items():
        assert list(each.windows) == [1, 2, 5]
        assert all(math.isnan(errors.linked_measured) for errors in each.windows.values())
        assert each.windows[5].linked_predicted == measured.layers[name].windows[5].linked_predicted
    assert predicted.linked.error == predicted.layers["all"].windows[predicted.linked.windows].linked_predicted


def test_the_network_and_the_random_state_stay_as_they_were():
    model = network(lif(0.5), 2, nn.BatchNorm1d).train()
    x, before = events(4), copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    gradient_decomposition(model, (x, Y))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_network_without_neurons_has_no_difference():
    found = gradient_decomposition(nn.Linear(INPUTS, CLASSES).double(), (events(4), Y))
    assert found.layers["Linear"].error < 1e-12
    assert (found.linked.windows, found.detached.windows) == (1, 1)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (RecurrentLIF(HIDDEN), r"1: RecurrentLIF \(neurons that receive each other's spikes"),
        (SynapticDelays((0, 1)), r"1: SynapticDelays \(its memory is not that of a neuron"),
        (nn.Dropout(0.2), r"1: Dropout \(it draws a mask per step through time.*call `\.eval\(\)` first"),
        (nn.LayerNorm(HIDDEN), r"1: LayerNorm \(no rate rule"),
    ],
)
def test_layers_whose_part_is_not_known_are_refused_by_name(layer: nn.Module, reason: str):
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), layer, LIF(), nn.LazyLinear(CLASSES))
    run(model, torch.zeros(1, 1, INPUTS))
    with pytest.raises(ValueError, match=f"gradient_decomposition.*{reason}"):
        gradient_decomposition(model, (events(4).float(), Y))
    if isinstance(layer, nn.Dropout):
        gradient_decomposition(model.eval(), (events(4).float(), Y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": [3]}, "argument `windows` to divide the number of time steps 4, but got 3"),
        ({"windows": [0]}, "argument `windows` to be an integer of at least 1, but got 0"),
        ({"lags": 0}, "argument `lags` to be an integer of at least 1, but got 0"),
        ({"tolerance": 0.0}, "argument `tolerance` to be larger than 0, but got 0.0"),
    ],
)
def test_bad_arguments_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        gradient_decomposition(network(lif(0.5)), (events(4), Y), **options)


def test_sequences_of_different_lengths_and_frozen_networks_are_refused():
    with sequence_lengths(torch.full((SAMPLES,), 3)), pytest.raises(ValueError, match="sequences of the same length"):
        gradient_decomposition(network(lif(0.5)), (events(4), Y))
    with pytest.raises(ValueError, match="`network` to have parameters that require a gradient, but got none"):
        gradient_decomposition(network(lif(0.5)).requires_grad_(False), (events(4), Y))


def test_it_prints_a_table_and_draws_its_errors(of_events):
    text = str(of_events[0.8])
    lines = text.splitlines()
    assert lines[0].split()[:6] == ["layer", "cosine", "error", "covariance", "remainder", "residual"]
    assert [line.split()[0] for line in lines[1:5]] == ["0", "2", "4", "all"]
    assert any(line.startswith("link=True:  window=2: the fewest windows") for line in lines)
    assert text.count("detached") == 3  # one table for each layer that differs
    curves = of_events[0.8].layers["all"].curves()
    panel = figures.window_errors({"decay 0.8": curves}).axes[0]
    assert [line.get_label() for line in panel.lines[::2]] == ["linked", "detached"]
    assert panel.lines[0].get_xydata()[:, 1].tolist() == [row[1] for row in curves["linked"]]


def test_shares_within_windows_are_those_of_random_sequences():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(20, 20_000, dtype=torch.float64, generator=generator)
    for sequences, share in ((white, white_share), (white.cumsum(0), walk_share)):
        whole = sequences.var(0, correction=0).mean()
        for count in (1, 2, 5, 10, 20):
            within = sequences.unflatten(0, (count, -1)).var(1, correction=0).mean()
            assert float(within / whole) == pytest.approx(share(20, count), abs=0.01)
    assert white_share(1, 1) == walk_share(1, 1) == 0


def test_lost_credit_counts_pairs_of_steps_in_different_windows():
    weights = [1.0, 0.6, 0.5, 0.1]
    for windows in (1, 2, 3, 6, 12):
        pairs = [
            (weights[late - early], late * windows // 12 != early * windows // 12)
            for late in range(12)
            for early in range(late + 1)
            if late - early < len(weights)
        ]
        expected = sum(weight for weight, crosses in pairs if crosses) / sum(weight for weight, _ in pairs)
        assert lost_credit(weights, 12, windows) == pytest.approx(expected, abs=1e-14)
    with pytest.raises(ValueError, match="`weights` to have a sum over pairs of steps that is not 0"):
        lost_credit([0.0], 4, 2)
