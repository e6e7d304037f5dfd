"""Networks whose hidden units are matched, then averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from atoll.contract import Model
from atoll.errors import ConfigError
from atoll.methods.matched.bbp import Array, match_units
from atoll.methods.parts.axes import Axis, Groups
from atoll.methods.parts.units import permutation_groups
from atoll.tensors import Tensors

__all__ = ["Matched", "match_models"]

BIAS = 0.1
"""Prior mean of biases, as the authors have it; only `shrink` and new units feel it."""


class Matched(NamedTuple):
    """`params`, `buffers`: the matched average. `assignments[g][j][l]`: the global unit of group g that unit l of
    client j is."""

    params: Tensors
    buffers: Tensors
    assignments: list[list[Tensor]]


def match_models(
    module: nn.Module | Groups,
    models: Sequence[Model],
    weights: Sequence[float] | None = None,
    classes: Tensor | None = None,
    *,
    gamma: float = 0.0,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    relative: bool = False,
    shrink: bool = False,
    outgoing: bool = False,
    precision: Sequence[float] | None = None,
    passes: int = 1,
    sweeps: int = 5,
    cap: int = 700,
    known: int = 0,
    seed: int = 0,
    round: int = 0,
) -> Matched:
    """Match the hidden units of networks group by group, from the inputs up, and average what belongs together.

    A group is matched by what flows into its units from groups matched before, moved to the global order (0 from units
    that a client does not have), and by biases. Then

        tensors of hidden units:  theta_i = sum_j s_j v_jl / sum_j s_j   over the clients whose unit l is i
        the outputs' layer:       theta_c = sum_j p_jc v_jc,   p_jc = share of class c's samples that client j has
        everything else:          the mean by `weights`; integer buffers their maximum

    Networks may have other widths than the module; the result has as many units as the matching finds.

    Args:
        module: the module, or its `permutation_groups`.
        models: (params, buffers) of each client.
        weights: samples of each client; by default all count the same.
        classes: samples of each class that each client has [clients, classes], for the outputs' layer.
        gamma, sigma, sigma0, relative, sweeps, cap: see `match_units`. gamma = 0 never makes more units than the widest
            network has, so that the result of equal networks fits the module; the authors take 7 for images and 0.001
            for text.
        shrink: whether weights are drawn to the prior mean (0, and 0.1 for biases), as the authors' code does: a
            network and its own copies do then not average to that network.
        outgoing: whether what flows out of a unit counts too, where the other end has its place.
        precision: s_j; by default all the same, as in the paper.
        passes: how often all groups are matched; from the second on by everything that flows in, which residual
            networks need, where a layer inside a block comes after the sum it is added to.
        known: the first so many groups have their places already.
        seed, round: the address of the order in which clients are matched anew.

    Raises ConfigError for networks that do not fit, MissingExtraError without scipy.
    """
    groups = permutation_groups(module) if isinstance(module, nn.Module) else module
    if not models:
        raise ConfigError("there is no network to match")
    counts = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    trust = [1.0] * len(models) if precision is None else [float(s) for s in precision]
    if min(counts) < 0 or sum(counts) <= 0 or min(trust) <= 0:
        raise ConfigError(f"weights = {counts}, precision = {trust}: they are positive")
    states = [Tensors({**params, **buffers}) for params, buffers in models]
    own = [groups.widths(state) for state in states]
    widths = [max(each[g] for each in own) for g in range(len(groups))]
    maps: list[dict[int, Tensor]] = [{g: torch.arange(each[g]) for g in range(known)} for each in own]
    for turn in range(max(passes, 1)):
        for g in range(known, len(groups)):
            there = set(range(g)) if turn == 0 else set(range(len(groups))) - {g}
            parts = [
                _rows(groups, state, g, there, at, widths, outgoing)
                for state, at in zip(states, maps, strict=True)
            ]
            bias = parts[0][1]
            found = match_units(
                [rows for rows, _ in parts],
                gamma=gamma, sigma=sigma, sigma0=sigma0, relative=relative, sweeps=sweeps, cap=cap,
                prior=np.where(bias, BIAS, 0.0), weights=trust, shrink=shrink, seed=seed, round=round, stream=g,
            )  # fmt: skip
            widths[g] = found.units
            for at, ids in zip(maps, found.assignments, strict=True):
                at[g] = torch.from_numpy(np.ascontiguousarray(ids))
    by_class = None if classes is None else _shares(classes, counts)
    prior = sigma**2 / sigma0**2 if shrink else 0.0
    trust = [s * len(trust) / sum(trust) for s in trust]
    result = {
        name: _average(groups, name, [s[name] for s in states], maps, widths, counts, trust, by_class, prior)
        for name in states[0]
    }
    params, buffers = models[0]
    return Matched(
        Tensors({n: result[n] for n in params}),
        Tensors({n: result[n] for n in buffers}),
        [[at[g] for at in maps] for g in range(len(groups))],
    )


def _rows(
    groups: Groups,
    state: Tensors,
    group: int,
    there: set[int],
    maps: Mapping[int, Tensor],
    widths: Sequence[int],
    outgoing: bool,
) -> tuple[Array, Array]:
    """What flows into the units of a group [units, D] from where all clients agree; which columns are biases [D]."""
    parts: list[Tensor] = []
    bias: list[Tensor] = []
    placed = {g: ids for g, ids in maps.items() if g in there}
    for name, axes in groups.axes.items():
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        for axis in axes:
            if axis.role != "out" and not (outgoing and axis.role == "in"):
                continue
            others = {s.group for a in axes if a.dim != axis.dim for s in a.segments} - {-1}
            if not others <= there:
                continue
            start, local = 0, _local(tensor, axis, maps, widths, group)
            for segment, width in zip(axis.segments, local, strict=True):
                length = segment.outer * width * segment.inner
                if segment.group == group:
                    piece = tensor.narrow(axis.dim, start, length)
                    bare = Groups(groups.sizes, {name: tuple(a for a in axes if a.dim != axis.dim)})
                    piece = bare.move(name, piece, placed, widths).movedim(axis.dim, 0)
                    piece = piece.reshape(segment.outer, width, -1).movedim(1, 0).reshape(width, -1)
                    parts.append(piece.double().cpu())
                    bias.append(torch.full((piece.shape[1],), tensor.ndim == 1))
                start += length
    return torch.cat(parts, 1).numpy(), torch.cat(bias).numpy()


def _local(
    tensor: Tensor, axis: Axis, maps: Mapping[int, Tensor], widths: Sequence[int], group: int
) -> list[int]:
    """How many units each segment of this client's axis has."""
    if len(axis.segments) == 1:
        (segment,) = axis.segments
        return [tensor.shape[axis.dim] // (segment.outer * segment.inner)]
    return [len(maps[s.group]) if s.group in maps else s.size for s in axis.segments]


def _average(
    groups: Groups,
    name: str,
    values: Sequence[Tensor],
    maps: Sequence[Mapping[int, Tensor]],
    widths: Sequence[int],
    counts: Sequence[float],
    trust: Sequence[float],
    by_class: Tensor | None,
    prior: float,
) -> Tensor:
    """The average of one tensor over the clients, each moved to the global places."""
    first = values[0]
    moved = [groups.move(name, v, m, widths) for v, m in zip(values, maps, strict=True)]
    if not first.is_floating_point():
        return torch.stack(moved).amax(0)
    axes = groups.axes.get(name, ())
    made = next((a for a in axes if a.role in ("out", "unit")), None)
    ends = next((a for a in axes if a.role == "class"), None)
    shape = [1] * first.ndim
    if made is not None:  # a mean over those that have the unit
        shape[made.dim] = moved[0].shape[made.dim]
        shares = [
            torch.zeros(shape[made.dim], dtype=torch.float64).index_fill(0, groups.places(made, m, widths), s)
            for m, s in zip(maps, trust, strict=True)
        ]
    elif ends is not None and by_class is not None and len(by_class[0]) == first.shape[ends.dim]:
        shape[ends.dim] = first.shape[ends.dim]
        shares = list(by_class)
    else:
        shares = [torch.tensor(c / sum(counts), dtype=torch.float64) for c in counts]
    total = torch.stack(shares).sum(0)
    base, change = moved[0].double(), torch.zeros_like(moved[0], dtype=torch.float64)
    for value, share in zip(
        moved, shares, strict=True
    ):  # as differences: what is equal stays equal to the bit
        change += (value.double() - base) * (share / total).reshape(shape).to(base.device)
    mean = base + change
    if prior and made is not None and made.role == "out":
        mass = total.reshape(shape).to(base.device)
        mean = (mean * mass + prior * (BIAS if first.ndim == 1 else 0.0)) / (mass + prior)
    return mean.to(first.dtype)


def _shares(classes: Tensor, counts: Sequence[float]) -> Tensor:
    """p_jc [clients, classes]; by samples where nobody has any of the class."""
    known = classes.double().cpu()
    total = known.sum(0)
    plain = torch.tensor(counts, dtype=torch.float64)[:, None] / sum(counts)
    return torch.where(total > 0, known / total.clamp(min=1e-12), plain)
