"""Noisy LIF neurons: against the unrolled recurrence with the same noise, and against their probabilities."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import Dynamics, iwst_weight, lif, noisy_lif
from lightning_snn.functional.scans import noisy_loop

RESETS = ("subtract", "zero")


def double(*shape: int, low: float, high: float) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_()


def unrolled(
    mean: Tensor,
    variance: Tensor,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    lam: float,
    recurrent: Tensor | None,
    recurrent_variance: Tensor | None = None,
    mode: str = "moment",
) -> tuple[Tensor, Tensor]:
    """The equations, step by step, with spikes whose gradient is the IW-ST weight and nothing else hand-written."""
    potential, spread = torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    spikes: list[Tensor] = []
    scores: list[Tensor] = []
    for current, noise in zip(mean, variance, strict=True):
        potential = beta * potential + current
        spread = beta**2 * spread + noise if mode == "moment" else noise
        if recurrent is not None and spikes:
            potential = potential + spikes[-1] @ recurrent.T
            if recurrent_variance is not None:
                spread = spread + spikes[-1] @ recurrent_variance.T
        root = (spread + 1e-8).sqrt()
        score = (potential - threshold) / root
        drawn = torch.randn_like(score)
        hard = (score > drawn).to(score.dtype)
        spike = hard + iwst_weight(score.detach(), hard, lam) * (score - score.detach())
        if mode == "step":
            potential = potential - root * drawn
        reset = spike.detach() if dynamics.detach_reset else spike
        if dynamics.reset == "subtract":
            potential = potential - threshold * reset
        else:
            potential, spread = potential * (1 - reset), spread * (1 - reset)
        spikes.append(spike)
        scores.append(score)
    return torch.stack(spikes), torch.stack(scores)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("recurrent", ["feedforward", "recurrent", "recurrent with a posterior"])
@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
def test_the_scan_is_the_unrolled_recurrence_with_the_same_noise(reset, detach, lam, recurrent, mode):
    dynamics = Dynamics(reset, detach_reset=detach)
    mean, variance = double(6, 3, 4, low=-1, high=2), double(6, 3, 4, low=0.1, high=1.1)
    beta, threshold = double(4, low=0.1, high=0.95), double(4, low=0.5, high=1.5)
    weight = None if recurrent == "feedforward" else double(4, 4, low=-1, high=1)
    weight_variance = double(4, 4, low=0.1, high=0.5) if recurrent == "recurrent with a posterior" else None
    matrices = [matrix for matrix in (weight, weight_variance) if matrix is not None]
    if mode == "trace" and (reset == "zero" or matrices):
        with pytest.raises(ValueError, match='reset "subtract" and no recurrent weights with mode "trace"'):
            noisy_lif(mean, variance, beta, threshold, dynamics, lam, mode, *matrices)
        return
    inputs = [mean, variance, beta, threshold, *matrices]
    torch.manual_seed(3)
    outputs = noisy_lif(mean, variance, beta, threshold, dynamics, lam, mode, weight, weight_variance)
    torch.manual_seed(3)
    expected = unrolled(mean, variance, beta, threshold, dynamics, lam, weight, weight_variance, mode)
    assert torch.equal(outputs[0], expected[0])
    torch.testing.assert_close(outputs[1], expected[1], rtol=1e-12, atol=1e-12)
    assert 0 < outputs[0].mean() < 1
    cotangents = [torch.randn_like(expected[0]), torch.randn_like(expected[1])]
    # through the spikes, through the standardized pre-activations, and through both
    for used in ([0], [1], [0, 1]):
        gradients, references = (
            torch.autograd.grad(
                [each[i] for i in used], inputs, [cotangents[i] for i in used], retain_graph=True, allow_unused=True
            )
            for each in (outputs, expected)
        )
        for got, reference in zip(gradients, references, strict=True):
            assert reference.abs().max() > 0
            torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["moment", "step"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("estimator", [0.5, "gumbel_straight_through"])
def test_the_gradient_does_not_depend_on_the_blocks_it_is_computed_in(mode, reset, estimator, monkeypatch):
    scan = noisy_loop
    inputs = [double(7, 5, 4, low=-1, high=2), double(7, 5, 4, low=0.1, high=1.1)]
    inputs += [double(4, low=0.1, high=0.95), double(4, low=0.5, high=1.5)]
    matrices = [double(4, 4, low=-1, high=1), double(4, 4, low=0.1, high=0.5)]
    torch.manual_seed(3)
    outputs = noisy_lif(*inputs, Dynamics(reset), estimator, mode, *matrices)
    cotangents = [torch.randn_like(output) for output in outputs]
    gradients = []
    # rows and steps: all, all in blocks that do not divide them, and one of each
    for rows, steps in ((5, 7), (2, 3), (1, 1)):
        monkeypatch.setattr(scan, "_CACHED_STEP", rows * 4)
        monkeypatch.setattr(scan, "CACHED_ELEMENTS", rows * 4 * steps)
        assert scan._block(inputs[0]) == (rows, steps)
        gradients.append(torch.autograd.grad(outputs, inputs + matrices, cotangents, retain_graph=True))
    for blocked in gradients[1:]:
        for got, reference in zip(blocked, gradients[0], strict=True):
            assert reference.abs().max() > 0
            torch.testing.assert_close(got, reference, rtol=1e-12, atol=1e-12)


def test_reset_detachment_and_lambda_each_change_the_gradient():
    mean, variance = double(6, 3, 4, low=-1, high=2), double(6, 3, 4, low=0.1, high=1.1)
    gradients = []
    for reset, detach, lam in [
        ("subtract", False, 0.5),
        ("subtract", True, 0.5),
        ("subtract", False, 1.0),
        ("zero", False, 0.5),
    ]:
        torch.manual_seed(3)
        spikes, _ = noisy_lif(mean, variance, 0.8, 1.0, Dynamics(reset, detach_reset=detach), lam)
        gradients.append(torch.autograd.grad(spikes.sum(), mean)[0])
    assert all((one - other).abs().max() > 1e-3 for one, other in product(gradients, repeat=2) if one is not other)


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (4, 2, 2)], ids=str)
def test_decay_and_threshold_broadcast_to_a_step(shape):
    mean, variance = double(5, 3, 4, 2, 2, low=-1, high=2), double(5, 3, 4, 2, 2, low=0.1, high=1)
    beta, threshold = double(*shape, low=0.1, high=0.9), double(*shape, low=0.5, high=1.5)
    torch.manual_seed(3)
    spikes, _ = noisy_lif(mean, variance, beta, threshold)
    torch.manual_seed(3)
    expected, _ = unrolled(mean, variance, beta, threshold, Dynamics(), 0.5, None)
    assert torch.equal(spikes, expected)
    for got, reference in zip(
        torch.autograd.grad(spikes.sum(), (beta, threshold)),
        torch.autograd.grad(expected.sum(), (beta, threshold)),
        strict=True,
    ):
        assert got.shape == shape
        torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reset", RESETS)
def test_spikes_have_the_probability_of_the_membrane_moments(reset):
    draws, beta, threshold = 40_000, 0.7, 1.0
    mean, variance = torch.tensor([0.9, 0.6]), torch.tensor([0.4, 0.25])
    spikes, _ = noisy_lif(
        mean.view(2, 1).expand(2, draws), variance.view(2, 1).expand(2, draws), beta, threshold, Dynamics(reset)
    )

    def fires(potential: float, spread: float) -> float:
        return torch.special.ndtr(torch.tensor((potential - threshold) / spread**0.5)).item()

    silent = (beta * 0.9 + 0.6, beta**2 * 0.4 + 0.25)
    after_spike = (beta * (0.9 - threshold) + 0.6, beta**2 * 0.4 + 0.25) if reset == "subtract" else (0.6, 0.25)
    for selected, expected in (
        (spikes[0], fires(0.9, 0.4)),
        (spikes[1][spikes[0] == 0], fires(*silent)),
        (spikes[1][spikes[0] == 1], fires(*after_spike)),
    ):
        assert abs(selected.mean().item() - expected) < 4.5 * (0.25 / selected.numel()) ** 0.5
    assert abs(fires(*silent) - fires(*after_spike)) > 0.1


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_the_mean_gradient_is_that_of_the_mean_spike_count(lam):
    draws, beta = 60_000, 0.8
    mean = torch.tensor([0.7, 0.8], dtype=torch.float64)
    variance = torch.tensor([0.5, 0.4], dtype=torch.float64)

    def expected_last_spike(mean: Tensor, variance: Tensor) -> Tensor:
        """E[s_2] by summing over s_1."""
        first = torch.special.ndtr((mean[0] - 1) / variance[0].sqrt())
        root = (beta**2 * variance[0] + variance[1]).sqrt()
        silent = torch.special.ndtr((beta * mean[0] + mean[1] - 1) / root)
        spiked = torch.special.ndtr((beta * (mean[0] - 1) + mean[1] - 1) / root)
        return (1 - first) * silent + first * spiked

    truth = torch.autograd.functional.jacobian(expected_last_spike, (mean, variance))
    inputs = [value.view(2, 1).expand(2, draws).clone().requires_grad_() for value in (mean, variance)]
    estimates = torch.autograd.grad(noisy_lif(*inputs, beta, estimator=lam)[0][1].sum(), inputs)
    # the reset makes the second step nonlinear in the first spike, which costs the estimator a little bias
    for estimate, exact in zip(estimates, truth, strict=True):
        torch.testing.assert_close(estimate.mean(1), exact, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gradients_are_finite_without_input_and_in_saturation(dtype, reset, lam):
    mean = torch.tensor([0.0, 1e4, -1e4, 0.0, 30.0], dtype=dtype).view(5, 1, 1).requires_grad_()
    variance = torch.tensor([0.0, 1.0, 1.0, 0.0, 1e-6], dtype=dtype).view(5, 1, 1).requires_grad_()
    spikes, _ = noisy_lif(mean, variance, 0.9, 1.0, Dynamics(reset), lam)
    assert spikes.dtype == dtype
    for gradient in torch.autograd.grad(spikes.sum(), (mean, variance)):
        assert gradient.isfinite().all()
        assert gradient.dtype == dtype


def test_without_variance_the_neuron_is_the_deterministic_one():
    mean = torch.rand(20, 4, 5, dtype=torch.float64)
    noiseless, _ = noisy_lif(mean, torch.zeros_like(mean), 0.9)
    assert (noiseless != lif(mean, 0.9)[0]).double().mean() < 0.01
    assert (noisy_lif(mean, torch.ones_like(mean), 0.9)[0] != lif(mean, 0.9)[0]).double().mean() > 0.1


def test_noise_follows_the_global_seed():
    mean, variance = torch.rand(6, 3, 4), torch.rand(6, 3, 4)
    samples = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        samples.append(noisy_lif(mean, variance, 0.9)[0])
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_three_tensors_of_the_size_of_the_input_are_saved():
    mean, variance = torch.rand(16, 3, 4).requires_grad_(), torch.rand(16, 3, 4).requires_grad_()
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        noisy_lif(mean, variance, 0.9)
    assert saved == 3 * [mean.numel()]


def test_strides_of_the_moments_do_not_matter():
    mean, variance = torch.rand(4, 6, 3).permute(1, 0, 2), torch.rand(6, 4, 6)[..., ::2]
    torch.manual_seed(3)
    spikes, _ = noisy_lif(mean, variance, 0.9)
    torch.manual_seed(3)
    assert torch.equal(noisy_lif(mean.contiguous(), variance.contiguous(), 0.9)[0], spikes)


@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
def test_gradients_of_batch_first_moments_are_those_of_contiguous_ones(mode):
    mean, variance = torch.randn(3, 5, 4, dtype=torch.float64), torch.rand(3, 5, 4, dtype=torch.float64)
    found = []
    for contiguous in (False, True):
        inputs = [x.transpose(0, 1) for x in (mean, variance)]
        inputs = [(x.contiguous() if contiguous else x).detach().requires_grad_() for x in inputs]
        torch.manual_seed(3)
        outputs = noisy_lif(*inputs, 0.8, mode=mode)
        found.append((*outputs, *torch.autograd.grad(sum(each.sum() for each in outputs), inputs)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reset", RESETS)
def test_gradients_do_not_depend_on_the_layout_of_the_moments(reset):
    mean, variance = torch.randn(4, 2, 3, 5, 6, dtype=torch.float64), torch.rand(4, 2, 3, 5, 6, dtype=torch.float64)
    cotangent, gradients = torch.randn_like(mean), []
    for channels_last in (False, True):
        inputs = [mean, variance]
        if channels_last:
            inputs = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in inputs]
        inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
        beta = torch.tensor([0.1, 0.5, 0.9], dtype=mean.dtype).view(3, 1, 1)
        spikes, _ = noisy_lif(*inputs, beta, torch.ones(3, 1, 1, dtype=mean.dtype), Dynamics(reset))
        gradients.append((spikes.detach(), *torch.autograd.grad(spikes, inputs, cotangent)))
    # the noise is drawn in the order of the memory, so neurons whose spikes happen to agree are compared
    same = (gradients[0][0] == gradients[1][0]).all(0)
    assert same.sum() > 10
    for one, other in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(one[:, same], other[:, same], rtol=1e-10, atol=1e-12)


def test_the_other_order_is_refused_by_name():
    mean = torch.rand(2, 3)
    with pytest.raises(
        ValueError, match='`dynamics.order` to be "reset_then_leak" for noisy neurons, but got "leak_then_reset"'
    ):
        noisy_lif(mean, mean, 0.9, 1.0, Dynamics(order="leak_then_reset"))
