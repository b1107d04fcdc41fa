"""The commands about settings, and about the servers that a person uses."""
