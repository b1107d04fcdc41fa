"""The core of parent tasks, whichever dialect asks."""
