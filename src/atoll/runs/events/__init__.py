"""What happens in a run: the kinds of events (`kinds`), and the log that they are written to and read from."""

from atoll.runs.events.log import Event, Log, encode, follow, plain, read, sound

__all__ = ["Event", "Log", "encode", "follow", "plain", "read", "sound"]
