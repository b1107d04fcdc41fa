"""The machine of a run: its lease, its start, its secrets, and its preservation."""
