"""The repository of a run: mirrored on the host, and made into the workspace disk of a machine."""
