"""Generalised linear models of columns that lie with several parties (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.vertical.glm.glm import GLM

__all__ = ["GLM"]
