"""Rounds of a federation: who takes part, the server's half as a state machine, what drives it, and judging."""
