"""A test-bench for authors of federated methods: `check(method)` says which promises of the contract it breaks."""

from __future__ import annotations

from atoll.testing.bench import check
from atoll.testing.report import CHECKS, Finding, Report

__all__ = ["CHECKS", "Finding", "Report", "check"]
