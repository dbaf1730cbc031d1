"""Runs of a module on a batch that leave the module unchanged, because they use copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from lightning_snn.callbacks.packages import is_a

_Module = TypeVar("_Module", bound=nn.Module)

# function from a module, or a copy of it, to the loss of a batch
Run = Callable[[nn.Module], Any]

# attributes of a module that a copy shares
_SHARED: tuple[type, ...] = (pl.Trainer, pl.LightningDataModule, Logger, Dataset, DataLoader)


def check_training_step(pl_module: pl.LightningModule, callback: pl.Callback) -> None:
    """Raise an error for a module whose training step cannot be run on a copy.

    Raises:
        ValueError: if it optimizes manually or reads its batches itself.
    """
    reads = is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True)
    if pl_module.automatic_optimization and not reads:
        return
    why = "one that reads its batches itself" if reads else "one with manual optimization"
    raise ValueError(
        "Expected a module with automatic optimization and a training step that receives its batch for "
        f"{type(callback).__name__}, but got {why}. Pass `network` to run only a part of the module."
    )


def training_run(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, callback: pl.Callback
) -> Callable[[nn.Module], Tensor]:
    """Return a function that runs a module's training step on a copy of a batch and returns the loss.

    Logged values are discarded. The step runs in the precision of the parameters, without autocast.

    Args:
        trainer: trainer of the fit.
        pl_module: module of the fit.
        batch: batch of the fit.
        callback: callback that asks for the run, for the error message if the step returns no loss.
    """
    numbered = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    plugin = trainer.precision_plugin

    def run(module: nn.Module) -> Tensor:
        copied = apply_to_collection(batch, Tensor, torch.clone)
        with ExitStack() as context:
            if not is_a(plugin, MixedPrecision):
                context.enter_context(plugin.forward_context())
            outputs = module.training_step(copied, *([0] if numbered else []))  # type: ignore[operator]
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            raise ValueError(
                "Expected a training step that returns a loss, or a dict with one, for "
                f"{type(callback).__name__}, but got {type(outputs)}"
            )
        return loss

    return run


def check_validation(
    trainer: pl.Trainer, pl_module: pl.LightningModule, check: Callable[[pl.LightningModule, Any, Any, int], None]
) -> None:
    """Check what a module's validation returns for the first batch of each loader, at the start of a fit.

    This takes the place of Lightning's sanity check where there was none. The steps run on a copy of the module, so
    nothing is logged, and all random generators are restored. A module that cannot be copied is not checked, which a
    warning says.

    Args:
        trainer: trainer of the fit.
        pl_module: module of the fit.
        check: function that gets the copy, a batch, the outputs of its validation step, and the index of the loader.
            It raises an error for unsuitable outputs.
    """
    try:
        copied = independent_copy(pl_module).eval()
    except Exception as error:  # of a third-party attribute
        rank_zero_warn(
            f"The outputs of {type(pl_module).__name__} are not checked before its first validation, because "
            f"`copy.deepcopy` cannot copy it: {error!r}"
        )
        return
    stage = trainer.state.stage
    trainer.sanity_checking = True
    try:
        with isolate_rng(), torch.no_grad():
            if trainer.val_dataloaders is None:  # the first validation comes in a later epoch
                trainer.fit_loop.epoch_loop.val_loop.setup_data()
            loaders = trainer.val_dataloaders
            for index, loader in enumerate([] if loaders is None else CombinedLoader(loaders, "sequential").flattened):
                for loaded in islice(loader, 1):
                    batch = copied._on_before_batch_transfer(trainer.precision_plugin.convert_input(loaded), index)
                    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=index)
                    with trainer.precision_plugin.forward_context():
                        outputs = call_step(copied, "validation_step", batch, 0, index)
                    check(copied, batch, outputs, index)
    finally:
        trainer.state.stage = stage


def call_step(pl_module: pl.LightningModule, name: str, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
    """Call a step such as "predict_step" of a module, with the index of the loader if it takes one."""
    step = getattr(pl_module, name)
    numbered = is_param_in_hook_signature(step, "dataloader_idx", explicit=True)
    return step(batch, batch_idx, *([dataloader_idx] if numbered else []))


def detached_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares neither parameters nor state with it; see `independent_copy`.

    Raises:
        ValueError: if an attribute of the module cannot be copied.
    """
    try:
        return independent_copy(module)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected a {type(module).__name__} that `copy.deepcopy` can copy for a measurement, but got: {error}. "
            "Pass `network` to measure only a part of the module."
        ) from error


def independent_copy(module: _Module, share_parameters: bool = False) -> _Module:
    """Return a copy of a module that shares no state with it, nor the autograd graph of its state.

    A copy of a LightningModule has the same trainer, logs nothing, and is not compiled.

    Args:
        module: module to copy. Errors of `copy.deepcopy` are passed on.
        share_parameters: whether the copy has the parameters of the module.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if any(is_a(value, kind) for kind in _SHARED):
                memo[id(value)] = value
            for tensor in tensors_within(value):
                # state with a graph, or created in inference mode by a validation
                if tensor.grad_fn is not None or tensor.is_inference():
                    memo[id(tensor)] = tensor.detach().clone()
        compiled = vars(part).get("_compiler_ctx")
        if compiled is not None:
            memo[id(compiled)] = {}
    if share_parameters:
        memo.update({id(parameter): parameter for parameter in module.parameters()})
    copied = copy.deepcopy(module, memo)
    for original, part in zip(module.modules(), copied.modules(), strict=True):
        if is_a(part, pl.LightningModule):
            # Lightning copies a module without its trainer
            vars(part).update(_trainer=vars(original)["_trainer"], log=_log_nothing, log_dict=_log_nothing)
            if "_compiler_ctx" in vars(part):
                for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
                    vars(part).pop(name, None)
    return copied


def frozen_copy(module: nn.Module, run: Run) -> nn.Module:
    """Return a copy whose batch normalization has the statistics of the batch, so samples do not affect one another.

    Frozen normalization, in evaluation mode in the module or put there by the run, keeps its own statistics. All other
    layers stay in the mode that they have in the module.
    """
    copied = detached_copy(module)
    norms = [layer for _, layer in _named_norms(copied) if layer.training and layer.num_batches_tracked is not None]
    if norms:
        for layer in norms:
            # the mean over all calls, perhaps one per time step; earlier statistics have no weight
            layer.num_batches_tracked.zero_()  # type: ignore[union-attr]
            layer.momentum = None
        run(copied)
        statistics = {
            name: buffer.clone() for name, layer in _named_norms(copied) for name, buffer in _buffers(name, layer)
        }
        # the run left its state on the copy
        copied = detached_copy(module)
        for name, norm in _named_norms(copied):
            norm.eval()
            for key, buffer in _buffers(name, norm):
                buffer.copy_(statistics[key])
    return copied


@contextmanager
def isolated_run(module: nn.Module) -> Iterator[None]:
    """Enable gradients within this context, and restore the state of all random generators after it."""
    devices = {tensor.device.index for tensor in module.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), isolate_rng(include_cuda=False), torch.enable_grad():
        yield


@contextmanager
def call_order(module: nn.Module, selects: Callable[[nn.Module], bool]) -> Iterator[list[str]]:
    """Record the names of modules in the order of their first calls, inner modules first, within this context."""
    order: list[str] = []

    def record(name: str) -> Any:
        def hook(*_: Any) -> None:
            if name not in order:
                order.append(name)

        return hook

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if selects(layer):
                hooks.callback(layer.register_forward_hook(record(name)).remove)
        yield order


def _named_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, _BatchNorm))


def _buffers(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((f"{name}.{key}", buffer) for key, buffer in layer.named_buffers(recurse=False))


def tensors_within(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, and in lists, tuples, sets, and mappings within it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from tensors_within(each)
    elif isinstance(value, Mapping):
        yield from tensors_within(list(value.values()))


def _log_nothing(*_: Any, **__: Any) -> None:
    pass
