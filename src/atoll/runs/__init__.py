"""Run folders: settings, events, checkpoints, and what reads them."""
