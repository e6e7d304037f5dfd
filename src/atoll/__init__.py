"""Atoll: federated and distributed learning for PyTorch."""

__version__ = "0.1.0"
