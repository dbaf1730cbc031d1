"""A module's own run on a batch, as often as need be, and without a trace: on copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

# from a module, or a copy of it, to the loss of a batch
Run = Callable[[nn.Module], Any]

# what a module may hold, and a copy need not have for its own
_SHARED = (pl.Trainer, pl.LightningDataModule, Logger, Dataset, DataLoader)


def check_training_step(pl_module: pl.LightningModule, callback: pl.Callback) -> None:
    """Refuse a module whose own training step cannot be run on a copy.

    Raises:
        ValueError: if it has none, optimizes by hand, or reads its batches itself.
    """
    reads = is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True)
    if pl_module.automatic_optimization and not reads:
        return
    why = "one that reads its batches itself" if reads else "one with manual optimization"
    raise ValueError(
        f"Expected a module with automatic optimization and a training step that is given its batch, or argument "
        f"`network` for a part of it to run by itself, for {type(callback).__name__}, but got {why}"
    )


def training_run(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, callback: pl.Callback) -> Run:
    """A run of a module's own training step on copies of a batch: from a copy of the module to its loss.

    What it logs is forgotten. It runs in the precision of the parameters, without autocast.

    Args:
        trainer, pl_module, batch: of the fit.
        callback: on whose behalf, for the message where the step returns no loss.
    """
    numbered = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    plugin = trainer.precision_plugin

    def run(module: nn.Module) -> Tensor:
        given = apply_to_collection(batch, Tensor, torch.clone)
        with ExitStack() as context:
            if not isinstance(plugin, MixedPrecision):
                context.enter_context(plugin.forward_context())
            found = module.training_step(given, *([0] if numbered else []))  # type: ignore[operator]
        loss = found.get("loss") if isinstance(found, dict) else found
        if not isinstance(loss, Tensor):
            raise ValueError(
                "Expected a training step that returns a loss, or a dict with one, for "
                f"{type(callback).__name__}, but got {type(found)}"
            )
        return loss

    return run


def detached_copy(module: nn.Module) -> nn.Module:
    """A copy of a module that shares neither parameters nor state with it; see `independent_copy`.

    Raises:
        ValueError: if something on the module cannot be copied.
    """
    try:
        return independent_copy(module)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected a {type(module).__name__} that `copy.deepcopy` can copy, to be measured without a trace, or "
            f"argument `network` for a part of it that can be, but got: {error}"
        ) from error


def independent_copy(module: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A copy of a module that shares no state with it, nor the graph that its state may carry.

    A copy of a LightningModule has the same trainer, logs nothing, and is not compiled.

    Args:
        module: what to copy; what `copy.deepcopy` raises of it is raised.
        share_parameters: whether the parameters of the copy are the module's own.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, _SHARED):
                memo[id(value)] = value
            for tensor in tensors_within(value):
                # state that carries a graph, or was made in inference mode by a validation
                if tensor.grad_fn is not None or tensor.is_inference():
                    memo[id(tensor)] = tensor.detach().clone()
        compiled = vars(part).get("_compiler_ctx")
        if compiled is not None:
            memo[id(compiled)] = {}
    if share_parameters:
        memo.update({id(parameter): parameter for parameter in module.parameters()})
    copied = copy.deepcopy(module, memo)
    for original, part in zip(module.modules(), copied.modules(), strict=True):
        if isinstance(part, pl.LightningModule):
            # a copy is without its trainer
            vars(part).update(_trainer=vars(original)["_trainer"], log=_ignore, log_dict=_ignore)
            if "_compiler_ctx" in vars(part):
                for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
                    vars(part).pop(name, None)
    return copied


def prepared_copy(module: nn.Module, run: Run) -> nn.Module:
    """A copy to measure: in evaluation mode, in which batch normalization has the statistics of the batch.

    Normalization that is frozen, in evaluation mode in the module or put there by the run, keeps its own.
    """
    copied = detached_copy(module)
    norms = [layer for _, layer in _named_norms(copied) if layer.training and layer.num_batches_tracked is not None]
    copied.eval()
    if norms:
        for layer in norms:
            # the mean over all calls, be they one a time step; what a layer had before has no weight
            layer.num_batches_tracked.zero_()  # type: ignore[union-attr]
            layer.momentum = None
            layer.train()
        run(copied)
        statistics = {
            name: buffer.clone() for name, layer in _named_norms(copied) for name, buffer in _buffers(name, layer)
        }
        # the run has left its state behind
        copied = detached_copy(module).eval()
        for name, norm in _named_norms(copied):
            for key, buffer in _buffers(name, norm):
                buffer.copy_(statistics[key])
    return copied


@contextmanager
def without_a_trace(module: nn.Module) -> Iterator[None]:
    """A context in which gradients are on, and after which all random numbers go on as if nothing had been drawn."""
    devices = {tensor.device.index for tensor in module.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), isolate_rng(include_cuda=False), torch.enable_grad():
        yield


@contextmanager
def first_calls(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[list[str]]:
    """A context that gives names of modules in the order in which they are called first, the inner ones first."""
    order: list[str] = []

    def keep(name: str) -> Any:
        def hook(*_: Any) -> None:
            if name not in order:
                order.append(name)

        return hook

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if wanted(layer):
                hooks.callback(layer.register_forward_hook(keep(name)).remove)
        yield order


def _named_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, _BatchNorm))


def _buffers(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((f"{name}.{key}", buffer) for key, buffer in layer.named_buffers(recurse=False))


def tensors_within(value: Any) -> Iterator[Tensor]:
    """The tensors in a value and in the lists, tuples, sets and mappings of it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from tensors_within(each)
    elif isinstance(value, Mapping):
        yield from tensors_within(list(value.values()))


def _ignore(*_: Any, **__: Any) -> None:
    pass
