"""Rate rules of batch normalization: the statistics are those of the spiking pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_snn.functional.rate import batch_norm_of_rates
from lightning_snn.methods.rate.rules import Plan, RateRule, WindowMean, register_rate_rule
from lightning_snn.processes import world_size


class BatchNormRule(RateRule):
    """Rule of batch normalization, over all steps at once or, when streaming, over each step separately.

    When streaming, the gradient uses the mean of ``1 / sigma_t`` over a window, and the momentum is divided by T, so
    running statistics change as much per training step as without streaming. In evaluation mode, with running
    statistics, the module itself acts on the rates. Running statistics are updated in the spiking pass only.
    """

    masks_padding = True  # in evaluation mode; while training the method refuses it

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        assert isinstance(module, _BatchNorm)
        self.norm = module
        self.by_batch = module.training or module.running_mean is None
        self.means: list[Tensor] = []
        self.inverse_stds: list[Tensor] = []
        self.normalized = WindowMean(plan)
        self.momentum = self._momentum() if self.by_batch else 0.0

    def collect(self, x: Tensor) -> Tensor:
        if not self.by_batch:
            return self.plain(x)
        y, mean, inverse_std = self._normalize(x)
        self.inverse_stds.append(inverse_std)
        if self.plan.streaming:
            # statistics and input of a step are correlated, so the mean output is not a function of mean statistics
            self.normalized.add(self._by_channel(x, mean, inverse_std))
        else:
            self.means.append(mean)
        return y

    def replay(self, x: Tensor) -> Tensor:
        if not self.by_batch:
            return self.plain(x)
        inverse_std = torch.stack(self.inverse_stds)
        if self.plan.streaming:
            normalized = self.normalized.value
            inverse_std = inverse_std.unflatten(0, (self.plan.windows, -1)).mean(1)
        else:
            normalized = self._by_channel(x.detach(), self.means[0], inverse_std[0])
        return batch_norm_of_rates(x, normalized, inverse_std, self.norm.weight, self.norm.bias, self._average())

    def _by_channel(self, x: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return torch.addcmul((-mean * inverse_std).view(shape), x, inverse_std.view(shape))

    def _normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, mean and 1 / sigma of the batch, and update the running statistics."""
        norm = self.norm
        running = (norm.running_mean, norm.running_var) if self._tracks else (None, None)
        return torch.native_batch_norm(x, norm.weight, norm.bias, *running, True, self.momentum, norm.eps)

    def _average(self) -> Callable[[Tensor], Tensor] | None:
        return None

    @property
    def _tracks(self) -> bool:
        return self.norm.training and self.norm.track_running_stats and self.norm.running_mean is not None

    def _momentum(self) -> float:
        """Count the batch and return the momentum of the running statistics in one call."""
        if self._tracks and self.norm.num_batches_tracked is not None:
            self.norm.num_batches_tracked.add_(1)
        momentum = self.norm.momentum
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(self.norm.num_batches_tracked) if self.norm.num_batches_tracked is not None else 0.0
        return momentum / self.plan.steps if self.plan.streaming else momentum


class SyncBatchNormRule(BatchNormRule):
    """Rule of batch normalization with statistics and gradient over the samples of all processes."""

    def _normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._processes == 1:
            return super()._normalize(x)
        norm = self.norm
        self.samples = x.shape[0]
        over = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # centered first, because the difference of large squares would lose the variance
        mean = self._mean_over_processes(wide.mean(over))
        shape = (1, -1, *(1,) * (x.dim() - 2))
        centered = wide - mean.view(shape)
        variance = self._mean_over_processes(centered.square().mean(over))
        inverse_std = torch.rsqrt(variance + norm.eps)
        if self._tracks:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            count = torch.full((), x.numel() / x.shape[1], device=x.device)
            dist.all_reduce(count, group=self._group)
            norm.running_mean.lerp_(mean.to(norm.running_mean), self.momentum)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), self.momentum)
        y = centered.mul_(inverse_std.view(shape))
        if norm.weight is not None:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        return y.to(x.dtype), mean, inverse_std

    def _average(self) -> Callable[[Tensor], Tensor] | None:
        return None if self._processes == 1 else self._mean_over_processes

    @property
    def _group(self) -> dist.ProcessGroup | None:
        return getattr(self.norm, "process_group", None)

    @property
    def _processes(self) -> int:
        return world_size(self._group)

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        """Return the mean weighted by the samples of each process, because the last batches may differ in size."""
        weighted = torch.cat([values.flatten() * self.samples, values.new_full((1,), self.samples)])
        dist.all_reduce(weighted, group=self._group)
        return (weighted[:-1] / weighted[-1]).view_as(values)


for _kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    register_rate_rule(_kind, BatchNormRule)
register_rate_rule(nn.SyncBatchNorm, SyncBatchNormRule)
