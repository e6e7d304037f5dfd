"""Clients' steps that hide single records: DP-SGD, in whatever method and engine."""
