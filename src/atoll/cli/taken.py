"""A run that is there, as the federation it was: for commands that ask something of its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.runs.folder import RunFolder

__all__ = ["taken"]


def taken(folder: RunFolder, sets: Sequence[str], tell: Callable[[str], object]) -> Federation:
    """The federation of a run, as far as it came; nobody is kept from writing the run.

    Raises ConfigError where there is nothing to take up, DataError where its data are not there any more.
    """
    federation = Experiment.of_run(folder, sets).build(tell=tell)
    federation.resume(folder.path)
    assert federation.folder is not None
    federation.folder.release()
    return federation
