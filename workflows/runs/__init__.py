"""A task run: its workflow, its states, and the messages in and out of it."""
