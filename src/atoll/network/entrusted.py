"""A coordinator's own samples, with which a rule compares what nodes send."""

from __future__ import annotations

from atoll.errors import DataError
from atoll.network.elsewhere import Elsewhere, alike, form_of
from atoll.network.here import Here
from atoll.network.journal import Journal

__all__ = ["entrusted"]


def entrusted(nodes: Elsewhere, root: Here, journal: Journal) -> Elsewhere:
    """The data of nodes, and the coordinator's own, which are the same in all of a run.

    Raises DataError for samples of another form, or others than those that the run began with.
    """
    problem = alike(nodes.form, form_of(root, root.number))
    if problem is not None:
        raise DataError(f"root: {problem}", hint="root data are read in the same way, from the same columns")
    if journal.get("root", root.sha256) != root.sha256:
        raise DataError(
            "root: these are other samples than those that the run began with",
            hint="give those back, or begin another run in another directory",
        )
    journal.put("root", root.sha256)
    samples = root.samples(root.number)
    assert samples is not None
    found = nodes.entrust(samples)
    assert isinstance(found, Elsewhere)
    return found
