"""BatchNorm over the batch of all processes, on any device (torch's own works on CUDA only)."""

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """A sum that every process gets. Each one's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class SynchronizedBatchNorm(_BatchNorm):
    """Mean and variance of the global batch.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithm 1, with the sums taken over processes. Departures: none.
    Cost: two reductions forward, of C + 1 and C numbers, and two backward.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any number of dimensions: channels are the second

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        channels = input.shape[1]
        local = torch.cat([input.float().sum(axes), input.new_tensor([input.numel() / channels], dtype=torch.float32)])
        total: Tensor = _SumOverProcesses.apply(local)
        count = total[-1].detach()
        mean = total[:-1] / count
        shape = [1, channels] + [1] * (input.dim() - 2)
        centred = input.float() - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._update(mean.detach(), (variance * count / (count - 1)).detach())
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Every BatchNorm inside becomes one over all processes with its parameters and buffers; in place where nested."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return module
    if isinstance(module, _BatchNorm) and not isinstance(module, SynchronizedBatchNorm):
        new = SynchronizedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        new.load_state_dict(module.state_dict())
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronize_batchnorm(child))
    return module
