"""Detection of state that leaks from one batch to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_snn.callbacks.layer_state import (
    Location,
    Snapshot,
    find_states,
    has_one_sample,
    is_constant_by_design,
    is_passed,
    is_per_sample,
    is_reset,
    used_states,
)
from lightning_snn.callbacks.packages import is_a
from lightning_snn.callbacks.stages import STAGES, SpikingStages, Stage
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.nn.conventions import reset_states

_FIRST_BATCHES = 3
_STAGE_NAMES = {"train": "training", "val": "validation"}


@dataclass(frozen=True, eq=False)
class _Leak:
    """State of a module that leaks from one batch to the next, or may do so.

    Attributes:
        module: module that keeps the state.
        location: location of the state in the module.
        state: state at the start of the batch.
        stage: stage of the batch.
    """

    module: nn.Module
    location: Location
    state: Snapshot
    stage: Stage


class StateGuard(SpikingStages):
    """Detector of state that leaks from batch to batch: it names the layers and a remedy, or resets the state.

    State has leaked if what a module computes in a batch depends on state that an earlier batch left in it. snntorch's
    neurons with `init_hidden` leak until their `reset_mem()` is called: a batch of the same size silently starts from
    the state of the last one, a smaller one silently starts from zero. SpikingJelly's neurons leak until
    `functional.reset_net`. Both may keep the autograd graph of the earlier batch, so backward fails or memory grows.

    The callback checks, in every module, the floating-point tensors that are neither parameters nor persistent buffers,
    in attributes or in lists, tuples, and dicts in attributes. A tensor has leaked if all of this is true:

    - It differs between samples at the start of a batch, as it never does after a reset, and still has these values
      when its module is first called in this batch. With a single sample, it differs from the state at the start of the
      last checked batch, or has an autograd graph.
    - That call depends on it: made on copies, once with another state, it returns or keeps other values. Or the tensor
      is passed to a module, such as the neuron of an explicit loop.
    - The batch changes it, so it is not a constant; masks of SpikingJelly's dropout are an exception.

    So neurons that keep a state but receive a new one, dropout, normalization, metrics, caches, and records cause no
    warning. Leaks are reported before the gradients of the batch are computed, once per layer and fit, and stored in
    `leaks`.

    Not detected are: state in objects that are not modules, in lists of more than 16 entries, or used by code of a
    module that is neither called itself nor passes it to another; an old state that was changed without a reset, such
    as half of it; states of batches whose samples are all equal; a leak without a graph into the first checked batch of
    single samples; leaks from one run of the network to another within a batch. A false alarm is the state of a single
    sample that is reset before each batch to learned values that differ between neurons.

    Nothing is done in sanity checks. A checked batch costs a pass over the kept tensors, and three more calls of
    neurons that may leak. Other batches cost nothing. Training is bit-identical, unless states are reset.

    Args:
        on_leak: "warn"; "raise", before the optimizer step; or "reset", which resets snntorch's and SpikingJelly's
            modules, and those of registered types with a method `reset_mem` or `reset`, before each batch, also in
            sanity checks, and warns of remaining leaks. Steps that run the network several times have to reset it
            themselves.
        every_n_batches: check the first three batches of each training, validation, test, or predict epoch and then
            every n-th.

    Attributes:
        leaks: by the name of a layer, the attributes whose state leaked in this run.

    Raises:
        ValueError: if an argument is out of range; at the start of a run, if the module has no spiking layers.
        RuntimeError: if state leaks and `on_leak` is "raise".

    Example:
        >>> trainer = pl.Trainer(callbacks=[StateGuard(on_leak="raise")], logger=False)
    """

    stages: tuple[Stage, ...] = (*STAGES, "predict")

    def __init__(self, on_leak: Literal["warn", "raise", "reset"] = "warn", every_n_batches: int = 100) -> None:
        super().__init__()
        check_choice("on_leak", on_leak, ("warn", "raise", "reset"))
        check_integer("every_n_batches", every_n_batches)
        self.on_leak, self.every_n_batches = on_leak, every_n_batches
        self.leaks: dict[str, list[str]] = {}
        self.discard()

    def discard(self) -> None:
        self._candidates: list[_Leak] = []
        self._reported: set[tuple[nn.Module, str]] = set()
        self._earlier: dict[tuple[nn.Module, str], Snapshot] = {}

    def begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().begin_run(trainer, pl_module)
        self.leaks = {}
        self.discard()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if trainer.sanity_checking and self.on_leak == "reset":
            reset_states(pl_module)

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if batch_idx < _FIRST_BATCHES or batch_idx % self.every_n_batches == 0:
            self._observe(pl_module, stage)
        if self.on_leak == "reset":
            reset_states(pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._report(pl_module)

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._report(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # a leak may be the cause, for example of a backward pass through the graph of the last batch
        leaks = self._confirm()
        if leaks:
            rank_zero_warn(self._message(pl_module, leaks))
        super().on_exception(trainer, pl_module, exception)

    def _observe(self, pl_module: pl.LightningModule, stage: Stage) -> None:
        """Record the states at the start of a batch, and check modules at their first call."""
        states = [
            _Leak(module, location, Snapshot(tensor.detach().clone(), tensor.grad_fn is not None), stage)
            for module in pl_module.modules()
            for location, tensor in find_states(module)
            if (module, str(location)) not in self._reported and not is_reset(tensor.detach())
        ]
        states = [state for state in states if not self._may_be_reset(state)]
        if not states:
            return
        for module in pl_module.modules():
            handle = module.register_forward_pre_hook(self._first_call_hook(states), with_kwargs=True)
            self.recording.callback(handle.remove)

    def _may_be_reset(self, leak: _Leak) -> bool:
        """Return whether a reset may leave the state of a single sample.

        After a reset, each neuron may have its own value, but the same in every batch.
        """
        if not has_one_sample(leak.state.values):
            return False
        key = leak.module, str(leak.location)
        earlier, self._earlier[key] = self._earlier.get(key), leak.state
        return not leak.state.has_graph and (earlier is None or earlier.equals(leak.state.values))

    def _first_call_hook(self, states: list[_Leak]) -> Callable[..., None]:
        called = False

        def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal called
            # with several processes a LightningModule is called in place of its step, and then perhaps by it
            replaces_step = is_a(module, pl.LightningModule) and "forward" in vars(module)
            if called or replaces_step:
                return
            called = True
            used = self._used(module, states, args, kwargs)
            self._candidates += [leak for leak in used if leak not in self._candidates]

        return check

    def _used(
        self, module: nn.Module, states: list[_Leak], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[_Leak]:
        """Return those of the recorded states that affect the first call of a module in a batch."""
        states = [
            leak for leak in states if is_per_sample(leak.module, leak.location, leak.state.values, (args, kwargs))
        ]
        passed = [leak for leak in states if is_passed(leak.state, args, kwargs)]
        own = {
            leak.location: leak
            for leak in states
            if leak.module is module and leak not in passed and leak.state.equals(leak.location.read(module))
        }
        if not own:
            return passed
        try:
            return [*passed, *(own[location] for location in used_states(module, list(own), args, kwargs))]
        except Exception as error:  # of a third-party module, whose run continues
            locations = " and ".join(f"`{location}`" for location in own)
            rank_zero_warn(
                f"{type(self).__name__} cannot check whether {type(module).__name__} starts from {locations} of an "
                f"earlier batch: calling a copy of it raised {error!r}"
            )
            return passed

    def _confirm(self) -> list[_Leak]:
        """Return the leaks of this batch, at its end."""
        self.recording.close()
        leaks = [
            leak
            for leak in self._candidates
            if is_constant_by_design(leak.location) or not leak.state.equals(leak.location.read(leak.module))
        ]
        self._candidates.clear()
        self._reported.update((leak.module, str(leak.location)) for leak in leaks)
        return leaks

    def _report(self, pl_module: pl.LightningModule) -> None:
        leaks = self._confirm()
        if not leaks:
            return
        message = self._message(pl_module, leaks)
        if self.on_leak == "raise":
            raise RuntimeError(message)
        rank_zero_warn(message)

    def _message(self, pl_module: pl.LightningModule, leaks: list[_Leak]) -> str:
        names = {module: name or type(module).__name__ for name, module in pl_module.named_modules()}
        found: dict[nn.Module, list[str]] = {}
        for leak in leaks:
            found.setdefault(leak.module, []).append(str(leak.location))
            self.leaks.setdefault(names[leak.module], []).append(str(leak.location))
        layers = "; ".join(
            f"{names[module]} ({type(module).__name__}) starts from {' and '.join(f'`{name}`' for name in locations)}"
            for module, locations in found.items()
        )
        stage = leaks[0].stage
        graph = ""
        if stage == "train" and any(leak.state.has_graph for leak in leaks):
            graph = " This state still has the autograd graph of the earlier batch, so backward fails."
        remedies = " ".join(dict.fromkeys(_remedy(module) for module in found))
        return (
            f"{type(self).__name__}: state of an earlier batch leaks into a {_STAGE_NAMES.get(stage, stage)} batch of "
            f"{type(pl_module).__name__}: {layers}.{graph} {remedies}"
        )


def _remedy(module: nn.Module) -> str:
    guard = "or use StateGuard(on_leak='reset')"
    if callable(getattr(module, "reset_mem", None)):
        return f"Call `reset_mem()` of each snntorch neuron at the start of `forward`, {guard}."
    if "_memories" in vars(module):
        return f"Call SpikingJelly's `functional.reset_net(network)` before each batch, {guard}."
    return f"Reset the state of {type(module).__name__} at the start of each batch."
