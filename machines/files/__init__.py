"""The files of a running machine: looked at, read, written, changed, and taken out and in as archives."""
