"""Models that read samples of several modalities, of which some may lack one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Fused"]


class Fused(nn.Module):
    """An encoder for each part, and one prediction from those that are there.

    late:       logits = mean of f_m(x_m) over the parts m that a sample has
    attention:  e_m = f_m(x_m);  a_m = softmax of u_m . tanh(e_m) over the parts that it has;
                logits = W sum_m a_m e_m + b      (Ilse et al., ICML 2018, with a u for each part)

    What stands in a part that is not there changes no bit of the outputs, nor of a gradient, and its encoder gets a
    gradient of 0. A sample without any part has logits of 0, or b. Encoders are `encoders.NAME`, so that the tensors of
    a part can be told by their names.

    Args:
        shapes: part -> shape of a sample.
        classes: logits.
        encoder: makes the network of a part, of its shape and how many outputs it is to have.
        fusion: how parts become one.
        width: numbers in e_m.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        classes: int,
        encoder: Callable[[tuple[int, ...], int], nn.Module],
        fusion: Literal["late", "attention"] = "late",
        width: int = 64,
    ) -> None:
        super().__init__()
        self.parts, self.fusion = tuple(shapes), fusion
        outputs = classes if fusion == "late" else width
        self.encoders = nn.ModuleDict(
            {name: encoder(tuple(shape), outputs) for name, shape in shapes.items()}
        )
        if fusion == "attention":
            self.queries = nn.ParameterDict(
                {name: nn.Parameter(torch.randn(width) / width**0.5) for name in shapes}
            )
            self.head = nn.Linear(width, classes)

    def forward(self, here: Tensor | None = None, **parts: Tensor) -> Tensor:
        """Logits [b, classes] of parts by name [b, ...], of which those are there that `here` [b, parts] says.

        A part that is not given is not there.
        """
        given = [at for at, name in enumerate(self.parts) if name in parts]
        some = parts[self.parts[given[0]]]
        if here is None:
            rows = torch.ones(len(some), len(given), device=some.device)
        else:  # not here[:, given]: a list is a tensor in main memory, which would cross to a GPU in every step
            rows = torch.stack([here[:, at] for at in given], 1)
        found = []
        for column, at in enumerate(given):
            there, name = rows[:, column] > 0, self.parts[at]
            found.append(_where(there, self.encoders[name](_where(there, parts[name]))))
        each = torch.stack(found, 1)  # [b, parts, ...]
        there = rows.to(each.dtype)
        if self.fusion == "late":
            return each.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        queries = torch.stack([self.queries[self.parts[at]] for at in given])
        scores = (torch.tanh(each) * queries).sum(2)
        scores = torch.where(rows > 0, scores, torch.full_like(scores, -1e30))
        weights = torch.exp(scores - scores.amax(1, keepdim=True)) * there
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-20)
        found_in: Tensor = self.head((weights.unsqueeze(2) * each).sum(1))
        return found_in


def _where(there: Tensor, values: Tensor) -> Tensor:
    """The values of the samples that have the part, and 0 elsewhere."""
    return torch.where(there.reshape(-1, *(1,) * (values.ndim - 1)), values, torch.zeros_like(values))
