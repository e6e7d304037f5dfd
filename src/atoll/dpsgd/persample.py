"""Gradients clipped sample by sample, then summed: of any model, one sample at a time under `vmap`.

This is the readable twin. It holds a gradient of every parameter for every sample; `atoll.dpsgd.ghost` gives the same
sums without, for models made of the layers it knows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from atoll import seeds
from atoll.gradient import grad_and_value
from atoll.parts import Inputs, each_part
from atoll.purity import as_batched
from atoll.task import Batch, Task
from atoll.tensors import Tensors

__all__ = ["by_sample", "clipped_sum", "factors"]


def factors(squares: Tensor, mask: Tensor, clip: float) -> Tensor:
    """What each sample's gradient is multiplied by, [b]: min(1, clip / norm); `squares` are squared norms.

    Rows of mask 0 count for nothing, nor do samples whose gradient is not finite: one such sample could otherwise move
    the sum without bound.
    """
    sound = (mask > 0) & torch.isfinite(squares)
    norms = torch.where(sound, squares, 1.0).sqrt()
    return torch.where(sound, (clip / norms.clamp(min=1e-30)).clamp(max=1.0), 0.0)


def by_sample(task: Task, params: Tensors, buffers: Tensors, batch: Batch) -> Tensors:
    """The gradient of each sample's loss: tensors [b, ...]. What the model draws, each sample draws for itself."""
    position = torch.arange(len(batch.mask), device=batch.mask.device)

    def one(inputs: Inputs, target: Tensor, mask: Tensor, key: Tensor) -> Tensors:
        alone = Batch(
            each_part(lambda part: part.unsqueeze(0), inputs), target.unsqueeze(0), mask.unsqueeze(0), key
        )
        return grad_and_value(lambda inner: task.loss(inner, buffers, alone), params)[0]

    with as_batched():  # recurrent layers in the plain form: their kernels know no samples
        return vmap(one)(batch.inputs, batch.targets, batch.mask, seeds.fold(batch.key, position))


def clipped_sum(task: Task, params: Tensors, buffers: Tensors, batch: Batch, clip: float) -> Tensors:
    """sum_i g_i min(1, clip / |g_i|) over the real samples of a batch (Abadi et al. 2016, Algorithm 1)."""
    found = by_sample(task, params, buffers, batch)
    squares = sum(each.flatten(1).square().sum(1) for each in found.values())
    assert isinstance(squares, Tensor)
    scale = factors(squares, batch.mask, clip)

    def total(each: Tensor) -> Tensor:
        flat = torch.where(scale[:, None] > 0, each.flatten(1), 0.0)
        return (scale.to(flat.dtype) @ flat).reshape(each.shape[1:])

    return found.map(total)
