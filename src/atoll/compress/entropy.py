"""What a codec sends in fewer bytes still, without loss: bytes of one rank side by side, and Zstandard over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.errors import CodecError, MissingExtraError
from atoll.tensors import Record

__all__ = ["needed", "squeezed", "unsqueezed"]

Form = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_LEVEL = 3
_WINDOW = 1 << 23
"""Bytes that whoever opens something keeps of what came before; level 3 asks for a quarter of it at most."""


def needed() -> Any:
    """The package.  Raises MissingExtraError."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "zstd", "+ zstd") from error
    return zstandard


def squeezed(sent: Record) -> Record:
    """What travels in the place of what a codec gives: {zstd}, uint8 [n], n as the numbers will have it.

    Of numbers of several bytes the first bytes of all come first, then the second ones: signs and exponents are alike,
    and the rest is not.   (The shuffle of Blosc; Collet and Kucherawy, RFC 8878)
    """
    body = b"".join(_shuffled(sent[name]).tobytes() for name in sorted(sent))
    made = needed().ZstdCompressor(level=_LEVEL).compress(body)
    return Record(zstd=torch.from_numpy(np.frombuffer(made, np.uint8).copy()))


def unsqueezed(sent: object, form: Form) -> Record:
    """What a codec gave that sends this `form`, of what travelled.

    Raises CodecError for whatever else it is. No more memory is asked for than the form needs, whatever the bytes say
    of their length.
    """
    zstd, size = needed(), sum(math.prod(shape) * dtype.itemsize for dtype, shape in form.values())
    found = sent.get("zstd") if isinstance(sent, Record) and sent.keys() == {"zstd"} else None
    if not isinstance(found, Tensor) or found.dtype != torch.uint8 or found.ndim != 1:
        raise CodecError("this is nothing that + zstd sends", hint="both sides must have one channel")
    most = size + (size >> 8) + 64
    if not 0 < len(found) <= most:
        raise CodecError(f"zstd has {len(found)} bytes, and {size} take up to {most}", hint=_MADE_UP)
    data = found.cpu().numpy().tobytes()
    try:
        said = zstd.get_frame_parameters(data).content_size
        if said != size:
            raise CodecError(f"zstd opens to {said} bytes, and {size} are due", hint=_MADE_UP)
        opener = zstd.ZstdDecompressor(max_window_size=_WINDOW)
        body = opener.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstd.ZstdError as error:
        raise CodecError(f"zstd cannot be opened: {error}", hint=_MADE_UP) from error
    if len(body) != size:
        raise CodecError(f"zstd opens to {len(body)} bytes, and {size} are due", hint=_MADE_UP)
    parts, at = {}, 0
    for name in sorted(form):
        dtype, shape = form[name]
        end = at + math.prod(shape) * dtype.itemsize
        parts[name] = _ordered(np.frombuffer(body[at:end], np.uint8), dtype, shape)
        at = end
    return Record(parts)


_MADE_UP = "it was damaged, or made up"


def _shuffled(value: Tensor) -> NDArray[np.uint8]:
    """Bytes of a tensor, by their place in a number: [width, n]."""
    octets = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(octets.reshape(-1, value.element_size()).T)


def _ordered(octets: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `_shuffled`."""
    rows = np.ascontiguousarray(octets.reshape(dtype.itemsize, -1).T).reshape(-1)
    return torch.from_numpy(rows.copy()).view(dtype).reshape(shape)
