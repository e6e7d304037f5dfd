"""Text for a terminal: the live table, the summary of a run."""
