"""Runs as they are watched: one look for many, and the sources that a stream is put together from."""
