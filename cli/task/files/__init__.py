"""`sandbox task cp`: files of this host and of the machine of a run."""
