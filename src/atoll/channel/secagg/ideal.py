"""The ideal functionality: what secure aggregation computes, by somebody whom all would trust. No keys, no masks.

Protocol and ideal give the same integers, so that a simulation may use this one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atoll.channel.secagg.encoding import Encoding, Ints, Total
from atoll.errors import ConfigError

__all__ = ["ideal"]


def ideal(encoding: Encoding, updates: Mapping[str, Ints]) -> Total:
    """The total of encoded updates (uint32 [d + 1]) by node.

    Raises ConfigError where there is none, for what the encoding does not give, or for more than it has room for.
    """
    encoding.check(len(updates))
    if not updates:
        raise ConfigError("there is no update to sum")
    sums = np.zeros(encoding.size + 1, dtype=np.uint32)
    for node, values in updates.items():
        if not encoding.fits(values):
            raise ConfigError(
                f"the numbers of {node!r} are no encoded update", hint="encode it by the same encoding"
            )
        sums += values
    total = encoding.total(sums, tuple(sorted(updates)))
    assert total is not None, "sums of sound updates are sound"
    return total
