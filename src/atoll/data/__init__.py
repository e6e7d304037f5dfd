"""Federated data: where it comes from, how it is divided among clients, and what a client holds."""

from .arrays import from_arrays, from_tensors, from_torch
from .catalogue import Entry, catalogue, data_root, find_root, load
from .corpus import from_texts
from .dataset import Dataset
from .division import Division, Partitioner, Place
from .download import fetch
from .federate import as_federated, from_clients
from .federated import FederatedData
from .files import from_file
from .frames import from_frame
from .hub import from_hf
from .lacking import lacking
from .lazy import from_function
from .leaf import load_leaf
from .media import from_audio_folder, from_image_folder
from .partition import (
    IID,
    By,
    ByTime,
    Continuous,
    Dirichlet,
    DirichletClient,
    ExtendedDirichlet,
    Indices,
    LabelPermutation,
    LogNormal,
    Matrix,
    Noise,
    Pathological,
    PowerLaw,
    QuantityDirichlet,
    Rotated,
    Shards,
    Sizes,
    parse_partition,
    partition_names,
    partitions,
)
from .partitioned import from_partitions
from .ratings import Ratings, from_ratings
from .report import PartitionReport
from .samples import Samples
from .synthesis import synthetic
from .whole import as_dataset

__all__ = [
    "IID",
    "By",
    "ByTime",
    "Continuous",
    "Dataset",
    "Dirichlet",
    "DirichletClient",
    "Division",
    "Entry",
    "ExtendedDirichlet",
    "FederatedData",
    "Indices",
    "LabelPermutation",
    "LogNormal",
    "Matrix",
    "Noise",
    "PartitionReport",
    "Partitioner",
    "Pathological",
    "Place",
    "PowerLaw",
    "QuantityDirichlet",
    "Ratings",
    "Rotated",
    "Samples",
    "Shards",
    "Sizes",
    "as_dataset",
    "as_federated",
    "catalogue",
    "data_root",
    "fetch",
    "find_root",
    "from_arrays",
    "from_audio_folder",
    "from_clients",
    "from_file",
    "from_frame",
    "from_function",
    "from_hf",
    "from_image_folder",
    "from_partitions",
    "from_ratings",
    "from_tensors",
    "from_texts",
    "from_torch",
    "lacking",
    "load",
    "load_leaf",
    "parse_partition",
    "partition_names",
    "partitions",
    "synthetic",
]
