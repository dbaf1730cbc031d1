"""Trial training on copies: whether a network that looks bad can learn, and whether a rescaling helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import Run, detached_copy, independent_copy, isolated_run
from lightning_snn.callbacks.initialization.findings import Finding

TRIAL_STEPS = 60
_AVERAGED = 5
_LEARNED = 0.9  # share of the first loss
_FASTER = 0.8  # share of the loss without rescaling


class Trial(NamedTuple):
    """Loss on one batch before and after a short training on that batch.

    Attributes:
        first: loss before the training.
        last: mean loss of the last 5 steps.
    """

    first: float
    last: float

    @property
    def learned(self) -> bool:
        """True if the loss fell by at least a tenth."""
        return self.last <= self.first - (1 - _LEARNED) * abs(self.first)

    def gains_over(self, other: Trial) -> bool:
        """Return whether this training ended with a lower loss, by a fifth if the other one learned too."""
        if not math.isfinite(other.last):
            return math.isfinite(self.last)
        return self.last < other.last - ((1 - _FASTER) * abs(other.last) if other.learned else 0.0)


def try_training(
    module: nn.Module, run: Run, steps: int = TRIAL_STEPS, reduce: Callable[[Tensor], Tensor] | None = None
) -> Trial:
    """Train a copy of a module on one batch.

    The steps are those of Adam with a learning rate of 1e-3, whatever optimizer the module has: they do not depend on
    the scale of gradients, so losses compare initial weights and not learning rates. Every step starts from the state
    of the module. The module, its buffers and state, and all random generators stay unchanged.

    Args:
        module: any module.
        run: function from a copy of the module to a scalar loss. It is called once per step.
        steps: number of steps, at least 1.
        reduce: function that averages a tensor over all processes; None for one process.

    Returns:
        The losses before and after.

    Example:
        >>> network, x = nn.Linear(1, 1), torch.ones(4, 1)
        >>> trial = try_training(network, lambda copied: (copied(x) - 5).square().mean())
        >>> trial.last < trial.first
        True
    """
    losses = []
    with isolated_run(module):
        trained = detached_copy(module)
        optimizer = torch.optim.Adam([each for each in trained.parameters() if each.requires_grad], 1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = run(independent_copy(trained, share_parameters=True))
            losses.append(loss.detach().double())
            loss.backward()
            optimizer.step()
    found = torch.stack([losses[0], torch.stack(losses[-_AVERAGED:]).mean()])
    first, last = (found if reduce is None else reduce(found)).tolist()
    return Trial(first, last)


def needs_trial(findings: Sequence[Finding]) -> bool:
    """Return whether a spiking network has a failure, or a layer that is entirely silent."""
    spiking = any(each.quantity == "firing_rate" for each in findings)
    return spiking and any(each.verdict == "fail" or _is_silence(each) for each in findings)


def with_trial(findings: Sequence[Finding], trial: Trial) -> list[Finding]:
    """Return findings whose verdicts agree with a trial, and a finding about the trial.

    If the network learned, failures that it may recover from are warnings. If it did not, every entirely silent layer
    fails, also at the output.
    """
    found = []
    for each in findings:
        if trial.learned and each.verdict == "fail" and each.may_recover:
            each = each._replace(verdict="warn", reason=f"{each.reason}, but the network learns its first batch")
        elif not trial.learned and _is_silence(each):
            each = each._replace(verdict="fail")
        found.append(each)
    if trial.learned:
        return [*found, Finding("trial_loss", "all", trial.last, "ok")]
    reason = f"{TRIAL_STEPS} steps on the first batch do not lower its loss of {trial.first:.4g} by a tenth"
    return [*found, Finding("trial_loss", "all", trial.last, "fail", reason, "change the layers listed above")]


def _is_silence(found: Finding) -> bool:
    return found.quantity == "dead_share" and found.value == 1 and found.verdict is not None
