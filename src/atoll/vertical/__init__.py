"""Parties with different columns about the same rows, or with neither in common (`docs/vertical.md`)."""
