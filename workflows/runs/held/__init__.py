"""Runs that are held: created, and started later."""
