"""Methods in which models learn from each other's outputs on public inputs, so that their architectures may differ."""

from atoll.methods.distilled.feddf import FedDF
from atoll.methods.distilled.fedmd import FedMD

__all__ = ["FedDF", "FedMD"]
