"""The events of a run in this dialect's words: as a stream, and as its log."""
