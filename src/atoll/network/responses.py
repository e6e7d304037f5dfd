"""What a coordinator answers with: messages, problems in one form, bodies."""

from __future__ import annotations

import os
from pathlib import Path

from atoll.errors import MissingExtraError
from atoll.network.wire import Message, Problem, pack

try:
    from aiohttp import web
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a coordinator") from None

__all__ = ["body", "problem", "refusal", "told"]

_SEND = 1 << 18
"""Bytes of a body that are read at a time when it is sent."""


def told(message: Message, status: int = 200) -> web.Response:
    """A message."""
    return web.Response(body=pack(message), content_type="application/json", status=status)


def problem(status: int, word: str, message: str, hint: str | None = None) -> web.Response:
    """Why a request was refused."""
    return told(Problem(problem=word, message=message[:4000], hint=hint and hint[:4000]), status)


class _TooLarge(web.HTTPClientError):
    """aiohttp's own has a text of its own, and takes no body beside it."""

    status_code = 413


def refusal(status: int, word: str, message: str, hint: str | None = None) -> web.HTTPException:
    """The same, to be raised."""
    kinds: dict[int, type[web.HTTPException]] = {
        400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound,
        408: web.HTTPRequestTimeout, 409: web.HTTPConflict, 422: web.HTTPUnprocessableEntity,
        413: _TooLarge, 415: web.HTTPUnsupportedMediaType, 429: web.HTTPTooManyRequests,
    }  # fmt: skip
    text = pack(Problem(problem=word, message=message[:4000], hint=hint)).decode()
    return kinds[status](text=text, content_type="application/json")


async def body(request: web.Request, path: Path) -> web.StreamResponse:
    """A body, or the range of it that was asked for.

    Under TLS aiohttp's own way goes through a thread for every 16 kB.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            start, stop, _ = request.http_range.indices(size)
        except ValueError:
            start, stop = size, size
        partial = "Range" in request.headers
        if partial and start >= stop:
            headers = {"Content-Range": f"bytes */{size}"}
            raise web.HTTPRequestRangeNotSatisfiable(headers=headers)
        response = web.StreamResponse(status=206 if partial else 200)
        response.content_type, response.content_length = "application/octet-stream", stop - start
        response.headers["Accept-Ranges"] = "bytes"
        if partial:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await response.prepare(request)
        if request.method != "HEAD":
            stream.seek(start)
            while start < stop:
                piece = stream.read(min(_SEND, stop - start))
                await response.write(piece)
                start += len(piece)
        await response.write_eof()
    return response
