"""Networks with several inputs, which batches hold in a tuple, a list or a dict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, advance, methods, run
from lightning_snn.methods import Progress
from lightning_snn.nn.inputs import map_inputs

T, B, CLASSES = 7, 4, 3
AUDIO, VIDEO = torch.rand(T, B, 5) * 2, torch.rand(T, B, 3, 4) * 2
Y, LENGTHS = torch.arange(B) % CLASSES, torch.tensor([3, 7, 5, 7])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(5, 8), LIF())
        self.video = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), LIF())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio(audio), self.video(video)], 1))


class OneInput(TwoInputs):
    """The same network on both inputs in one tensor."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, :5], x[:, 5:].unflatten(1, (3, 4)))


FORMS = {
    "a tuple": (AUDIO, VIDEO),
    "a list": [AUDIO, VIDEO],
    "a dict": {"video": VIDEO, "audio": AUDIO},
}
TOGETHER = torch.cat([AUDIO, VIDEO.flatten(2)], 2)
METHODS = {
    "surrogate": methods.SurrogateGradient,
    "pieces": lambda: methods.SurrogateGradient(checkpoint=2),
    "rates": lambda: methods.RateBackprop(check_drift=False),
    "rates, streaming": lambda: methods.RateBackprop(streaming=True, check_drift=False),
    "rates, steps": lambda: methods.RateBackprop(window="step", check_drift=False),
    "online": lambda: methods.OnlineThroughTime(trace=False),
    "online, streaming": lambda: methods.OnlineThroughTime(streaming=True),
    "noisy spikes": lambda: methods.NoisySpikes(samples=2),
    "Bayes": lambda: methods.SpikingBayes(samples=2),
}


def results(network: type[nn.Module], method: str, x: object, *rest: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    module = SpikingModule(network(), METHODS[method](), num_classes=CLASSES)
    module.method.progress = Progress(0.5, 64)
    objective = module.training_step((x, *rest), 0)
    objective.backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [objective.detach(), *gradients, module.validation_step((x, *rest), 0)["prediction"].mean]


@pytest.mark.parametrize("method", METHODS)
def test_several_inputs_are_those_of_one_tensor_that_the_network_divides(method):
    for rest in ((Y,), (Y, LENGTHS)):
        expected = results(OneInput, method, TOGETHER, *rest)
        for form in FORMS.values():
            torch.testing.assert_close(results(TwoInputs, method, form, *rest), expected, rtol=0, atol=1e-6)
    exchanged = results(TwoInputs, method, (AUDIO.flip(0), VIDEO), Y)
    assert not torch.allclose(exchanged[1], results(OneInput, method, TOGETHER, Y)[1])


@pytest.mark.parametrize("form", FORMS)
def test_pieces_of_a_sequence_and_batch_first_take_several_inputs(form):
    network, x = TwoInputs(), FORMS[form]
    swapped = map_inputs(lambda part: part.transpose(0, 1), x)
    expected = run(network, x)
    assert torch.equal(advance(network, x)[0], expected)
    module = SpikingModule(network, num_classes=CLASSES, batch_first=True)
    assert torch.equal(module(swapped), expected.transpose(0, 1))
    assert torch.equal(module.predict_step((swapped,), 0).mean, expected.mean(0).softmax(1))


REFUSED = {
    "one too few": ((AUDIO,), r"the forward of TwoInputs takes, \(audio.*, but got a tuple of 1 tensors"),
    "another key": ({"audio": AUDIO, "vid": VIDEO}, "but got a dict of the keys 'audio', 'vid'"),
    "other steps": ((AUDIO, VIDEO[:5]), r"inputs of the same \[T, B\], but got x\[0\] of \(7, 4\), x\[1\] of \(5, 4\)"),
    "other samples": ({"audio": AUDIO[:, :3], "video": VIDEO}, r"x\['audio'\] of \(7, 3\), x\['video'\] of \(7, 4\)"),
    "an array": ((AUDIO, VIDEO.numpy()), r"`x\[1\]` to be a tensor of shape \[T, B, \.\.\.\], but got a ndarray"),
    "counts": ({"audio": AUDIO, "video": VIDEO > 1}, r"`x\['video'\]` in floating point, but got torch.bool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_do_not_fit_are_refused_by_name(name):
    x, message = REFUSED[name]
    module = SpikingModule(TwoInputs(), num_classes=CLASSES)
    for call in (lambda: run(module.network, x), lambda: module.validation_step((x, Y), 0)):
        with pytest.raises(ValueError, match=message):
            call()


def test_targets_that_do_not_fit_name_the_axes():
    module = SpikingModule(TwoInputs(), num_classes=CLASSES)
    swapped = tuple(part.transpose(0, 1) for part in FORMS["a tuple"])
    with pytest.raises(ValueError, match="Axis 0 of x has as many entries as y, so the batch is first"):
        module.training_step((swapped, Y), 0)
