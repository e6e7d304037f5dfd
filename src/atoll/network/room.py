"""Whether something failed because the machine had no room: then it is no failure, and is tried again later."""

from __future__ import annotations

import errno

__all__ = ["crowded"]

_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}


def crowded(error: BaseException) -> bool:
    """Whether an error comes from a full disk, or from too many open files, whatever became of it on its way."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and each.errno in _ERRNOS:
            return True
        if "disk is full" in str(each):  # SQLite's words, and all that it says
            return True
        each = each.__cause__ or each.__context__
    return False
