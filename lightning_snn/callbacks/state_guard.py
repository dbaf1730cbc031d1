"""State that goes over from one batch to the next, where nobody meant it to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_snn.callbacks.layer_state import (
    Kept,
    Place,
    belongs_to_samples,
    is_among,
    is_anew,
    is_constant_by_design,
    is_of_one_sample,
    places,
    reset,
    used_places,
)
from lightning_snn.callbacks.stages import check_spiking_layers
from lightning_snn.checks import check_choice, check_integer

_FIRST_BATCHES = 3


@dataclass(frozen=True, eq=False)
class _Leak:
    """State of a module that goes over from one batch to the next, perhaps.

    Attributes:
        module: the module that keeps it.
        place: where.
        kept: what went over.
        stage: in which kind of batch it was seen: training, validation, test or predict.
    """

    module: nn.Module
    place: Place
    kept: Kept
    stage: str


class StateGuard(pl.Callback):
    """Finds state that leaks from batch to batch, names the layers, and says what to do; or resets it.

    State has leaked if what a module computes in a batch depends on what an earlier batch left in it. snntorch's
    neurons with `init_hidden` leak until their `reset_mem()` is called: an equal batch silently goes on from the last
    one, a smaller one silently starts from zero. SpikingJelly's leak until `functional.reset_net`. Both may carry the
    graph of the earlier batch along, on which backward fails or memory grows.

    Looked at are, of every module, the floating tensors that it keeps beside parameters and persistent buffers, in
    attributes or in lists, tuples and dicts in attributes. One has leaked if

    - it differs between samples when a batch begins, as no state does that was reset, and still has these values when
      its module is called first in this batch. Of a single sample, it differs from what the batch that was looked at
      before began with, or hangs on a graph;
    - that call depends on it: made on copies, once with another state, it returns or keeps something else. Or it is
      passed to a module, such as the neuron of an explicit loop;
    - the batch changes it, so that it is no constant; masks of SpikingJelly's dropout excepted.

    So neurons that keep a state but are given a new one, dropout, normalization, metrics, caches and records raise no
    alarm. Leaks are said before the gradients of the batch are taken, once for a layer and a fit, and are in `leaks`.

    Not seen are: state in objects that are no modules, in lists of more than 16 entries, or used by code of a module
    that is neither called itself nor passes it to another; an old state that was changed and not reset, such as a half
    of it; states of batches whose samples are all alike; a leak without a graph into the first of the batches of a
    single sample that are looked at; leaks from one run to another within a batch. Taken for a leak is the state of a
    single sample that is reset before a batch to learned values, of which each neuron has its own.

    Nothing is done in sanity checks. Batches that are looked at cost a pass over the kept tensors; neurons that are
    under suspicion, three calls of themselves more. Other batches cost nothing, and what is trained is the same to the
    last bit, unless states are reset.

    Args:
        on_leak: "warn"; "raise", before the step of the optimizer; or "reset", which resets snntorch's and
            SpikingJelly's modules, and those of registered types with a method `reset_mem` or `reset`, before each
            batch, also in sanity checks, and warns of leaks that are left. Steps that run the network several times
            have to reset it themselves.
        every_n_batches: after the first three batches of each training, validation, test or predict epoch every n-th
            is looked at.

    Raises:
        ValueError: if an argument is outside its range; when a run starts, if the module has no spiking layers.
        RuntimeError: if state leaks and `on_leak` is "raise".

    Example:
        >>> trainer = Trainer(callbacks=[StateGuard()])
        >>> trainer.fit(module, data)
    """

    def __init__(self, on_leak: Literal["warn", "raise", "reset"] = "warn", every_n_batches: int = 100) -> None:
        check_choice("on_leak", on_leak, ("warn", "raise", "reset"))
        check_integer("every_n_batches", every_n_batches)
        self.on_leak, self.every_n_batches = on_leak, every_n_batches
        self.leaks: dict[str, list[str]] = {}
        self._hooks = ExitStack()
        self._suspects: list[_Leak] = []
        self._said: set[tuple[nn.Module, str]] = set()
        self._earlier: dict[tuple[nn.Module, str], Kept] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._watch(trainer, pl_module, batch_idx, "training")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watch(trainer, pl_module, batch_idx, "validation")

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watch(trainer, pl_module, batch_idx, "test")

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watch(trainer, pl_module, batch_idx, "predict")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._tell(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._tell(pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._tell(pl_module)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._tell(pl_module)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._tell(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # a leak may well be why a step failed, such as by a backward through the graph of the last batch
        leaks = self._confirmed()
        if leaks:
            rank_zero_warn(self._message(pl_module, leaks))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._hooks.close()
        self._suspects.clear()
        self._said.clear()
        self._earlier.clear()

    def _begin(self, pl_module: pl.LightningModule) -> None:
        check_spiking_layers(pl_module, self)
        self.leaks = {}
        self._said = set()
        self._earlier = {}

    def _watch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int, stage: str) -> None:
        looked_at = batch_idx < _FIRST_BATCHES or batch_idx % self.every_n_batches == 0
        if looked_at and not trainer.sanity_checking:
            self._hook(pl_module, stage)
        if self.on_leak == "reset":
            reset(pl_module)

    def _hook(self, pl_module: pl.LightningModule, stage: str) -> None:
        """Note what is kept, and have modules looked at when they are called first."""
        noted = [
            _Leak(module, place, Kept(tensor.detach().clone(), tensor.grad_fn is not None), stage)
            for module in pl_module.modules()
            for place, tensor in places(module)
            if (module, str(place)) not in self._said and not is_anew(tensor.detach())
        ]
        noted = [leak for leak in noted if not self._may_be_anew(leak)]
        if not noted:
            return
        for module in pl_module.modules():
            handle = module.register_forward_pre_hook(self._first_call(noted), with_kwargs=True)
            self._hooks.callback(handle.remove)

    def _may_be_anew(self, leak: _Leak) -> bool:
        """Whether the state of a single sample may be one that a reset leaves: each neuron may have its own value then,
        but the same in every batch."""
        if not is_of_one_sample(leak.kept.values):
            return False
        key = leak.module, str(leak.place)
        earlier, self._earlier[key] = self._earlier.get(key), leak.kept
        return not leak.kept.has_graph and (earlier is None or earlier.is_still(leak.kept.values))

    def _first_call(self, noted: list[_Leak]) -> Callable[..., None]:
        called = False

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal called
            # with several processes a LightningModule is called in place of its step, and then perhaps by it
            stands_for_step = isinstance(module, pl.LightningModule) and "forward" in vars(module)
            if called or stands_for_step:
                return
            called = True
            self._suspects += [leak for leak in self._used(module, noted, args, kwargs) if leak not in self._suspects]

        return look

    def _used(
        self, module: nn.Module, noted: list[_Leak], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[_Leak]:
        """From which of the states that were noted the first call of a module in a batch goes on."""
        noted = [
            leak for leak in noted if belongs_to_samples(leak.module, leak.place, leak.kept.values, (args, kwargs))
        ]
        passed = [leak for leak in noted if is_among(leak.kept, args, kwargs)]
        own = {
            leak.place: leak
            for leak in noted
            if leak.module is module and leak not in passed and leak.kept.is_still(leak.place.read(module))
        }
        if not own:
            return passed
        try:
            return [*passed, *(own[place] for place in used_places(module, list(own), args, kwargs))]
        except Exception as error:  # of a module of someone else, whose run goes on
            kept = " and ".join(f"`{place}`" for place in own)
            rank_zero_warn(
                f"{type(self).__name__} cannot tell whether {type(module).__name__} goes on from {kept} of an earlier "
                f"batch: calling a copy of it raised {error!r}"
            )
            return passed

    def _confirmed(self) -> list[_Leak]:
        """The leaks of this batch, which is over."""
        self._hooks.close()
        leaks = [
            leak
            for leak in self._suspects
            if is_constant_by_design(leak.place) or not leak.kept.is_still(leak.place.read(leak.module))
        ]
        self._suspects.clear()
        self._said.update((leak.module, str(leak.place)) for leak in leaks)
        return leaks

    def _tell(self, pl_module: pl.LightningModule) -> None:
        leaks = self._confirmed()
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
            found.setdefault(leak.module, []).append(str(leak.place))
            self.leaks.setdefault(names[leak.module], []).append(str(leak.place))
        layers = "; ".join(
            f"{names[module]} ({type(module).__name__}) starts from {' and '.join(f'`{place}`' for place in kept)}"
            for module, kept in found.items()
        )
        graph = ""
        if leaks[0].stage == "training" and any(leak.kept.has_graph for leak in leaks):
            graph = " It still hangs on the graph of the earlier batch: unless it is detached, backward fails."
        remedies = " ".join(dict.fromkeys(_remedy(module) for module in found))
        return (
            f"{type(self).__name__}: state of an earlier batch leaks into a {leaks[0].stage} batch of "
            f"{type(pl_module).__name__}: {layers}.{graph} {remedies}"
        )


def _remedy(module: nn.Module) -> str:
    guard = ", or use StateGuard(on_leak='reset')"
    if callable(getattr(module, "reset_mem", None)):
        return f"Call `reset_mem()` of each neuron of snntorch at the beginning of `forward`{guard}."
    if "_memories" in vars(module):
        return f"Call `functional.reset_net(network)` of SpikingJelly before each batch{guard}."
    return f"Set the state of {type(module).__name__} anew at the beginning of each batch."
