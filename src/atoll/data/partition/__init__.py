"""Rules that divide one dataset among clients."""

from .explicit import Indices, Matrix
from .feature import LabelPermutation, Noise, Rotated, rotate
from .label import Dirichlet, DirichletClient, ExtendedDirichlet, Pathological, Shards
from .natural import By, ByTime, Continuous
from .parse import parse_partition, partition_names, partitions
from .quantity import IID, LogNormal, PowerLaw, QuantityDirichlet, Sizes

__all__ = [
    "IID",
    "By",
    "ByTime",
    "Continuous",
    "Dirichlet",
    "DirichletClient",
    "ExtendedDirichlet",
    "Indices",
    "LabelPermutation",
    "LogNormal",
    "Matrix",
    "Noise",
    "Pathological",
    "PowerLaw",
    "QuantityDirichlet",
    "Rotated",
    "Shards",
    "Sizes",
    "parse_partition",
    "partition_names",
    "partitions",
    "rotate",
]
