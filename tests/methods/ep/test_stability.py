"""Stability of the iterations: rates of the linearized map, the longest steps that converge, and who is warned."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.functional.ep import Message, bounded, spike_message
from lightning_snn.methods import ExpectationPropagation
from lightning_snn.methods.ep import MessageNetwork, Natural, Stability, convergence, ep_stability, stability
from lightning_snn.methods.ep.convergence import Convergence
from tests.methods.ep.task import Steps, dense, digits, prepared, updated
from tests.support.slow import others_slow
from tests.support.training import one_step, trainer

PRIOR, NOISE = 0.5, 0.09


def linear(samples: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weights, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((samples, inputs), (inputs, 1), (samples, 1))
    )
    return x, x @ weights + NOISE**0.5 * noise


def added_precision(x: Tensor, variance: Tensor) -> Tensor:
    """Precision that values with noise add to weights of these variances `[I]`; see `marginal_curvature`."""
    potential = x**2 @ variance
    share = potential / (potential + NOISE)
    inputs = (x**2).sum(1) ** 2 / (x**4).sum(1)
    curvature = 2 / (potential + NOISE) / (1 + (1 - 4 * share * (1 - share) / inputs).sqrt())
    return (x**2).T @ curvature


def rate(values: list[Tensor]) -> float:
    """Factor of the last two differences of a sequence."""
    last, before = values[-1] - values[-2], values[-2] - values[-3]
    return (last.norm() / before.norm()).item()


@pytest.mark.parametrize(("samples", "inputs"), [(60, 20), (30, 20), (20, 60)])
@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_variances_of_a_linear_model_converge_at_the_rate_of_the_linearized_map(samples, inputs, damping):
    x, y = linear(samples, inputs)
    network = prepared(nn.Linear(inputs, 1, bias=False).double(), True, prior_variance=PRIOR, noise_variance=NOISE)
    found = [network.chain.blocks[0].layer.natural.precision[0].detach()]
    while len(found) < 3 or (found[-1] - found[-2]).norm() > 1e-7 * found[-1].norm():
        start = [Natural(found[-1][None], found[-1][None])]
        found.append(updated(network, x, y, 1, damping, 1, start=start).natural[0].precision[0])
    jacobian = torch.func.jacrev(lambda precision: added_precision(x, 1 / precision))(found[-1])
    eigenvalues = torch.linalg.eigvals(jacobian)
    largest = eigenvalues.real.max().item()
    assert 0.1 < largest < 1
    assert eigenvalues.real.min() > -0.1  # the map is monotone, up to what a weight's own share corrects
    assert rate(found) == pytest.approx(1 - damping * (1 - largest), rel=0.02)
    # without that share the map is monotone and scalable: one fixed point, and a rate below 1
    variance, curvature = 1 / found[-1], 1 / (x**2 @ (1 / found[-1]) + NOISE)
    bound = (x**2 @ variance * curvature).max() * (1 - found[-1].reciprocal() / PRIOR).max()
    kernel = variance[:, None] * ((x**2).T @ (curvature[:, None] ** 2 * x**2)) * variance
    assert torch.linalg.eigvals(kernel).abs().max() <= bound < 1


@pytest.mark.parametrize("start", [1e-3, 1e3])
def test_the_posterior_of_a_linear_model_does_not_depend_on_the_start(start):
    x, y = linear(30, 20)
    network = prepared(nn.Linear(20, 1, bias=False).double(), True, prior_variance=PRIOR, noise_variance=NOISE)
    (cavity,) = [block.layer.natural for block in network.chain.blocks]
    scaled = Natural(start * cavity.precision, cavity.precision_mean + 1)
    found = updated(network, x, y, 40, 1.0, 25, start=[scaled]).natural[0]
    expected = updated(network, x, y, 40, 1.0, 25).natural[0]
    for values, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(values, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("samples", "variance", "exact"), [(50, 0.1, True), (100, 10.0, True), (300, 0.1, False)])
def test_one_observed_layer_converges_undamped_at_the_largest_share_of_a_label(samples, variance, exact):
    x, y = digits(samples)
    network = prepared(dense(24, 3), prior_variance=variance)
    cavities = [block.layer.natural for block in network.chain.blocks]
    update, states = updated(network, x, y, 8, 1.0, 30), []
    for _ in range(12):
        update = updated(network, x, y, 1, 1.0, 30, cavities, update.natural, update.scores)
        states.append(update.scores[0])
    mean, spread = update.natural[0].precision_mean / update.natural[0].precision, 1 / update.natural[0].precision
    inputs = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    weights = inputs**2 @ spread.T
    potential = inputs @ mean.T - weights * update.scores[0]
    log_odds = torch.where(torch.nn.functional.one_hot(y, 3).bool(), math.inf, -math.inf).double()
    message = bounded(spike_message(potential, weights, log_odds, "probit"), weights)
    largest = (weights * message.curvature).max().item()
    measured = ep_stability(network, x[None], y, steps=30)
    assert measured.stable_damping > 1.2
    assert measured.settled
    if exact:
        assert rate(states) == pytest.approx(largest, abs=0.03)
    else:  # of many samples each has a small share, and the variances of the weights are slower
        assert largest < rate(states) < 0.25


class Run:
    """Iterations of a batch in a chain, from the prior to a fixed point, and from near that with other steps."""

    def __init__(self, network: MessageNetwork, x: Tensor, y: Tensor, iterations: int, damping: float) -> None:
        self.network, self.x, self.y = network, x, y
        self.cavities = [block.layer.natural for block in network.chain.blocks]
        self.fixed = updated(network, x, y, iterations, damping, 10)

    def growth(self, damping: float, iterations: int = 15) -> float:
        """Factor by which steps multiply a deviation of the means of a hundredth of a standard deviation."""
        generator = torch.Generator().manual_seed(1)
        moved = [
            Natural(
                natural.precision,
                natural.precision_mean
                + 0.01 * natural.precision.sqrt() * torch.randn(natural.precision.shape, generator=generator).double(),
            )
            for natural in self.fixed.natural
        ]
        states = [self.fixed, replace(self.fixed, natural=moved)]
        deviations = []
        for _ in range(iterations):
            states = [
                updated(self.network, self.x, self.y, 1, damping, 10, self.cavities, state.natural, state.scores)
                for state in states
            ]
            parts = zip(*(state.natural for state in states), strict=True)
            deviations.append(
                sum(((a.precision_mean - b.precision_mean).square() / a.precision).sum().item() for a, b in parts)
            )
        return math.sqrt(deviations[-1] / deviations[0])


def test_steps_below_the_stable_damping_converge_and_those_above_do_not():
    x, y = digits(120, flips=0.25)
    network = prepared(dense(24, 6, 6, 3))
    measured = ep_stability(network, x[None], y)
    assert measured.settled
    assert 0.3 < measured.stable_damping < 0.9
    assert measured.stable_damping == pytest.approx(2 / (1 - measured.eigenvalue.real), rel=1e-6)
    assert measured.eigenvalue.imag == 0
    run = Run(network, x, y, 150, 0.3 * measured.stable_damping)
    assert run.growth(0.8 * measured.stable_damping) < 0.8
    assert run.growth(1.25 * measured.stable_damping) > 3


def test_the_estimate_is_that_of_the_whole_jacobian(monkeypatch):
    x, y = digits(12, 3)
    network = prepared(dense(3, 2, 3))
    fixed = updated(network, x, y, 150, 0.3, 6)
    cavities = [block.layer.natural for block in network.chain.blocks]
    found = {}
    for precise in (1e-3, 0.03):
        monkeypatch.setattr(stability, "_PRECISE", precise)
        found[precise] = stability.stability_at(network.chain, cavities, x, y, fixed, 6, 25)
    values = [*(values for natural in fixed.natural for values in natural), *fixed.scores]
    sizes = [each.shape for each in values]

    def undamped(state: Tensor) -> Tensor:
        parts = [
            part.view(size) for part, size in zip(state.split([size.numel() for size in sizes]), sizes, strict=True)
        ]
        start = [Natural(*parts[:2]), Natural(*parts[2:4])]
        after = updated(network, x, y, 1, 1.0, 6, cavities, start, parts[4:])
        return torch.cat(
            [each.flatten() for natural in after.natural for each in natural]
            + [score.flatten() for score in after.scores]
        )

    state = torch.cat([each.flatten() for each in values])
    columns = []
    for index in range(len(state)):
        step = torch.zeros_like(state)
        step[index] = 1e-5 * (1 + state[index].abs())
        columns.append((undamped(state + step) - undamped(state - step)) / (2 * step[index]))
    eigenvalues = torch.linalg.eigvals(torch.stack(columns, 1))
    dampings = 2 * (1 - eigenvalues.real) / (1 - eigenvalues).abs() ** 2
    assert all(each.settled for each in found.values())
    assert found[1e-3].stable_damping == pytest.approx(dampings.min().item(), rel=1e-3)
    assert found[0.03].stable_damping == pytest.approx(dampings.min().item(), rel=0.06)


def diagonal_updates(
    x: Tensor, spikes: Tensor, variance: float, damping: float, iterations: int
) -> tuple[list[float], float]:
    """The parallel update of each weight alone: largest moves, and its stable damping at the exact fixed point."""

    def message(potential: Tensor, weights: Tensor) -> Message:
        log_odds = torch.where(spikes, math.inf, -math.inf).double()[:, None]
        return bounded(spike_message(potential, weights, log_odds, "probit"), weights)

    network = prepared(nn.Linear(x.shape[1], 2, bias=False).double(), prior_variance=variance)
    fixed = updated(network, x, spikes.long(), 30, 1.0, 60)
    precision, mean = (values[1:] for values in fixed.natural[0])
    mean = mean / precision
    weights = x**2 @ (1 / precision).T
    found = message(x @ mean.T - weights * fixed.scores[0][:, 1:], weights)
    scaled = x / precision.sqrt()
    matrix = torch.diag(1 / variance / precision[0]) + scaled.T @ (found.curvature * scaled)
    values, modes = torch.linalg.eigh(matrix)
    top = (scaled @ modes[:, -1:]).square()
    share = ((weights * found.curvature) * top * found.curvature).sum() / (top * found.curvature).sum()
    stable = (2 * (1 + share) / values[-1]).item()

    mean, precision = torch.zeros_like(mean), torch.full_like(precision, 1 / variance)
    score, moves = torch.zeros_like(weights), []
    for _ in range(iterations):
        weights = x**2 @ (1 / precision).T
        found = message(x @ mean.T - weights * score, weights)
        target = 1 / variance + found.curvature.T @ x**2
        move = (found.score.T @ x - mean / variance) / target
        moves.append(move.abs().max().item())
        mean, precision = mean + damping * stable * move, precision + damping * stable * (target - precision)
        score = found.score  # which the factor 1 + VG of the bound assumes
    return moves, stable


def test_the_update_of_each_weight_alone_diverges_above_its_bound_where_ours_needs_no_damping():
    x, y = digits(200, inputs=60)
    settled, stable = diagonal_updates(x, y == 0, 0.1, 0.8, 150)
    assert 0.02 < stable < 0.6
    assert settled[-1] < 1e-3 * settled[0]
    assert diagonal_updates(x, y == 0, 0.1, 1.5, 150)[0][-1] > 0.1 * settled[0]


def positive(samples: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Inputs that are never negative, so that all batches observe one direction, and values of a linear model."""
    x, y = linear(samples, inputs)
    weights = torch.linalg.lstsq(x, y).solution
    x = torch.rand(samples, inputs, generator=torch.Generator().manual_seed(1)).double()
    return x, x @ weights + NOISE**0.5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).double()


def pushed(x: Tensor, y: Tensor, batches: list[Tensor], sweeps: int) -> Steps:
    """Settled sites of batches, with the precision-means of one batch moved by the size of a standard deviation."""
    layer = nn.Linear(x.shape[1], 1, bias=False).double()
    options = {"prior_variance": PRIOR, "noise_variance": NOISE, "damping": 1.0, "solver_iterations": 25}
    steps = Steps(layer, True, iterations=1, **options)
    for _ in range(sweeps):
        steps.take(x, y, batches, len(x))
    steps.update_sites()
    (trained,) = steps.layers
    push = trained.precision.detach().sqrt() * torch.randn(1, x.shape[1], generator=torch.Generator().manual_seed(3))
    key, site = next(iter(trained.sites._sites.items()))
    trained.sites._sites[key] = site._replace(precision_mean=site.precision_mean + push)
    with torch.no_grad():
        trained.precision_mean += push
    return steps


def responses(x: Tensor, batches: list[Tensor], precision: Tensor) -> list[Tensor]:
    """Return what each batch adds to its precision-means for a change of the others: `E (P - E)^-1`, P as given."""
    found = []
    for batch in batches:
        inputs = x[batch]
        # the precision that the batch adds, given the others
        added, site = x.new_zeros(x.shape[1]), inputs.T @ inputs / NOISE
        added = added_precision(inputs, 1 / precision)
        excess = torch.diag(added) - site
        found.append(excess @ torch.linalg.inv(torch.diag(precision) - excess))
    return found


@pytest.mark.parametrize("count", others_slow([2, 3, 6, 20], fast=[3]))
def test_sweeps_over_batches_converge_to_the_exact_mean_at_the_predicted_rate(count):
    """The largest eigenvalues may be a complex pair, around whose rate the error oscillates for some sweeps."""
    sweeps = 16 if count == 3 else 60
    x, y = positive(60, 20)
    batches = list(torch.arange(60).chunk(count))
    steps = pushed(x, y, batches, 60)
    precision = steps.layers[0].precision.detach()[0].clone()
    exact = torch.linalg.solve(torch.eye(20).double() / PRIOR + x.T @ x / NOISE, x.T @ y / NOISE)[:, 0]
    errors = []
    for _ in range(sweeps):
        steps.take(x, y, batches, 60)
        errors.append((steps.layers[0].moments()[0][0] - exact).norm().item())
    blocks = responses(x, batches, precision)
    sweep = torch.eye(20 * count, dtype=x.dtype)
    for index, block in enumerate(blocks):
        update = torch.eye(20 * count, dtype=x.dtype)
        update[20 * index : 20 * (index + 1)] = block.repeat(1, count)
        update[20 * index : 20 * (index + 1), 20 * index : 20 * (index + 1)] = 0
        sweep = update @ sweep
    predicted = torch.linalg.eigvals(sweep).abs().max().item()
    assert 0.5 < predicted < 1
    last = sweeps // 2
    assert (errors[-1] / errors[-1 - last]) ** (1 / last) == pytest.approx(predicted, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 6, 20])
def test_batches_in_parallel_need_damping_by_two_over_their_number(count):
    x, y = positive(60, 20)
    batches = list(torch.arange(60).chunk(count))
    settled = pushed(x, y, batches, 40)
    precision = settled.layers[0].precision.detach()[0]
    blocks = responses(x, batches, precision)
    together = torch.cat([block.repeat(1, count) for block in blocks])
    for index in range(count):
        together[20 * index : 20 * (index + 1), 20 * index : 20 * (index + 1)] = 0
    eigenvalue = torch.linalg.eigvals(together).real.min().item()
    stable = 2 / (1 - eigenvalue)
    assert 1 / count < stable < 4.2 / count
    for damping, grows in ((0.8 * stable, False), (1.25 * stable, True)):
        steps = copy.deepcopy(settled)
        steps.optimizer = torch.optim.SGD(steps.network.parameters(), damping)
        deviations = []
        for _ in range(30):
            steps.optimizer.zero_grad()
            for batch in batches:
                steps.ask(x[batch], y[batch], 60)
            before = steps.layers[0].moments()[0].clone()
            steps.optimizer.step()
            deviations.append((steps.layers[0].moments()[0] - before).norm().item())
        assert (deviations[-1] > 3 * deviations[0]) == grows


def fitted(damping: float, epochs: int = 8) -> tuple[SpikingModule, list[str]]:
    """A fit of a chain of three layers to one batch, and the warnings on its steps."""
    x, y = digits(120, flips=0.25)
    method = ExpectationPropagation(damping=damping, prior_variance=[1.0, 1.0, 10.0], prior_split=0.5)
    network = dense(24, 6, 6, 3)
    torch.manual_seed(0)
    module = SpikingModule(network, method, num_classes=3)
    loader = DataLoader(TensorDataset(x, y), 120, collate_fn=one_step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=epochs, precision="64-true").fit(module, loader)
    return module, [str(each.message) for each in caught if "takes steps of" in str(each.message)]


def test_a_fit_near_the_edge_warns_and_others_do_not(monkeypatch):
    assert fitted(0.55, 1)[1] == []
    monkeypatch.setattr(convergence, "_STABILITY_SHARE", 1.0)
    module, found = fitted(0.55)
    (message,) = found
    assert "takes steps of 0.55, and steps of more than" in message
    assert "Reduce `damping` to" in message
    assert fitted(0.3)[1] == []
    assert fitted(1.0)[1] == []  # diverges: no estimate settles, and the residual warns
    assert module.method.convergence.stability_steps == 6


def test_a_measurement_changes_no_bit_of_the_fit_and_draws_nothing(monkeypatch):
    plain, _ = fitted(0.55)
    drawn = torch.get_rng_state()
    monkeypatch.setattr(convergence, "_STABILITY_SHARE", 1.0)
    measured, found = fitted(0.55)
    assert found
    assert torch.equal(torch.get_rng_state(), drawn)
    for one, other in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_measurement_costs_a_percent_and_waits_for_a_batch_that_returned_and_converged():
    verdict, settled = Convergence(), torch.tensor(0.05)
    assert not verdict.stability_due(1199, True, settled)
    assert not verdict.stability_due(1, False, settled)
    assert not verdict.stability_due(1, True, torch.tensor(0.2))
    assert not verdict.stability_due(100, True, settled)
    assert verdict.stability_due(100, True, settled)
    unsettled = Stability(-4.0, 0.4, False, 0.05)
    assert verdict.stability_problem(unsettled, 0.9) is None
    assert not verdict.stability_due(1300, True, settled)
    assert verdict.stability_due(200, True, settled)
    assert verdict.stability_problem(replace(unsettled, settled=True), 0.3) is None
    assert "Reduce `damping` to 0.32" in verdict.stability_problem(replace(unsettled, settled=True), 0.33)
    assert not verdict.stability_due(10**9, True, settled)


def test_a_state_far_from_a_fixed_point_or_too_few_steps_do_not_settle():
    x, y = digits(120, flips=0.25)
    network = prepared(dense(24, 6, 6, 3))
    early = ep_stability(network, x[None], y, iterations=3)
    assert early.residual > 0.1
    assert not early.settled
    assert early.problem(1.0) is None
    assert not ep_stability(network, x[None], y, steps=1, iterations=60).settled
    lost = ep_stability(network, 1e5 * x[None], y, iterations=5, steps=2)
    assert not lost.settled
    assert lost.residual == math.inf


def test_a_batch_of_the_fit_is_measured_at_the_posterior_without_its_own_site():
    x, y = digits(120, flips=0.25)
    parts = torch.arange(120).split(60)
    steps = Steps(dense(24, 6, 3), iterations=6)
    for _ in range(4):
        steps.take(x, y, parts, 120)
    steps.update_sites()
    before = [values.clone() for values in steps.network.state_dict().values()]
    known = ep_stability(steps.network, x[None, :60], y[:60])
    assert all(torch.equal(a, b) for a, b in zip(before, steps.network.state_dict().values(), strict=True))
    cavities = [layer.cavity(next(iter(layer.sites._sites.values()))) for layer in steps.layers]
    settled = updated(steps.network, x[:60], y[:60], 40, 0.3, 5, cavities)
    assert known.settled
    for layer, natural in zip(steps.layers, settled.natural, strict=True):
        assert layer.family.squared_distance(natural, layer.natural).mean().sqrt() < 0.2
    as_new = ep_stability(steps.network, x[None, :59], y[:59])
    assert known.stable_damping != pytest.approx(as_new.stable_damping, rel=1e-3)


def test_other_networks_targets_and_numbers_are_refused():
    x, y = digits(20)
    network = prepared(dense(24, 6, 3))
    with pytest.raises(ValueError, match="`network` to be from `ExpectationPropagation.prepare`, but got Sequential"):
        ep_stability(dense(24, 6, 3), x[None], y)
    with pytest.raises(ValueError, match="as many targets as samples"):
        ep_stability(network, x[None], y[:-1])
    for name in ("iterations", "solver_iterations", "steps"):
        with pytest.raises(ValueError, match=f"`{name}` to be an integer of at least 1"):
            ep_stability(network, x[None], y, **{name: 0})


@pytest.mark.parametrize("memory", ["per_batch", "average"])
@pytest.mark.parametrize(("sizes", "expected"), [((24, 3), 1.0), ((24, 6, 3), 0.3)])
def test_the_default_damping_is_that_of_the_number_of_layers(sizes, expected, memory):
    x, y = digits(60)
    found = []
    for damping in (None, expected, 0.7):
        steps = Steps(dense(*sizes), damping=damping, memory=memory)
        steps.take(x, y, torch.arange(60).split(30), 60)
        found.append(steps.layers[0].natural)
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0].precision, found[2].precision)
    assert "damping" not in repr(ExpectationPropagation())
    assert "damping=0.3" in repr(ExpectationPropagation(damping=0.3))


@pytest.fixture
def real_digits(shared_data) -> tuple[Tensor, Tensor]:
    """The first 2,000 digits `[N, 28, 28]` in [0, 1], and their classes."""
    with np.load(shared_data / "mnist.npz") as file:
        return torch.from_numpy(file["x_train"][:2000]).double() / 255, torch.from_numpy(file["y_train"][:2000]).long()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "samples", "low", "high"),
    [
        ((20,), 50, 0.9, math.inf),
        ((20,), 200, 0.7, 0.9),
        ((40,), 200, 0.6, 0.7),
        ((20, 20), 200, 0.4, 0.5),
        ((20, 20), 600, 0.35, 0.6),
    ],
)
def test_stable_damping_of_chains_on_real_digits(real_digits, hidden, samples, low, high):
    images, y = real_digits
    x = (nn.functional.avg_pool2d(images[:samples, None], 2) > 0.4).double().flatten(1)
    y = y[:samples]
    network = prepared(dense(196, *hidden, 10))
    measured = ep_stability(network, x[None], y)
    run = Run(network, x, y, 300, 0.4 * min(measured.stable_damping, 1))
    growth = {factor: run.growth(factor * measured.stable_damping, 25) for factor in (0.8, 1.25)}
    assert measured.settled
    assert low - 0.03 < measured.stable_damping < high + 0.03
    assert growth[0.8] < 1
    assert growth[1.25] > 3


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "low", "high"), [(10, 0.7, 1.1), (100, 0.2, 0.32)])
def test_the_update_of_each_weight_alone_on_real_digits(real_digits, samples, low, high):
    images, y = real_digits
    x, spikes = (images[:samples] > 0.5).double().flatten(1), y[:samples] == 3
    moves, stable = diagonal_updates(x, spikes, 0.1, 0.8, 300)
    long, _ = diagonal_updates(x, spikes, 0.1, 1.5, 300)
    assert low < stable < high
    assert moves[-1] < 1e-3 * moves[0]
    assert long[-1] > 0.1 * moves[0]
