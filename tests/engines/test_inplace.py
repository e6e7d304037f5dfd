"""Writing in place against the same steps as they are written, for small programs drawn at random."""

from __future__ import annotations

from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.engines.capture import capture

STATE = ("a", "b", "c")
"""Square matrices, so that any may be multiplied by any."""

Line = tuple[str, int, int, float]
"""An operation, the places of its operands among the values so far, and a number."""

lines = st.lists(
    st.tuples(
        st.sampled_from(["pull", "add", "times", "product", "turned", "rows", "scaled", "seen"]),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from([-1.0, -0.5, 0.25, 1.0]),
    ),
    min_size=2,
    max_size=7,
)


def step(
    program: list[Line], ends: tuple[int, int, int], state: dict[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """The new state: for each tensor its own, or one of the values that a program comes to."""
    known = [*state.values(), x]
    for kind, left, right, by in program:
        a, b = known[left % len(known)], known[right % len(known)]
        known.append(
            {
                "pull": lambda a, b, by: a - (a - b) * by,
                "add": lambda a, b, by: a + b * by,
                "times": lambda a, b, by: a * by + torch.tanh(b),
                "product": lambda a, b, by: a - a @ b * by,
                "turned": lambda a, b, by: b + (a @ b).t() * by,
                "rows": lambda a, b, by: a + b[:1] * by,
                "seen": lambda a, b, by: a.t(),
                "scaled": lambda a, b, by: a + b * (b[0, 0] * by),
            }[kind](a, b, by)
        )
    return {name: known[len(known) - 1 - end % len(known)] for name, end in zip(STATE, ends, strict=True)}


@settings(deadline=None, max_examples=100)
@given(program=lines, ends=st.tuples(*(st.integers(0, 5) for _ in STATE)), seed=st.integers(0, 99))
def test_programs_come_to_the_same_written_in_place(
    program: list[Line], ends: tuple[int, int, int], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(3, 3, generator=draw, dtype=torch.float64) / 3 for name in STATE}
    x = torch.randn(3, 3, generator=draw, dtype=torch.float64) / 3
    captured = capture(partial(step, program, ends), state, x)
    values = [value.clone() for value in state.values()]
    for _ in range(2):
        state, values = step(program, ends, state, x), captured(values, [x])
        for got, want in zip(values, state.values(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
