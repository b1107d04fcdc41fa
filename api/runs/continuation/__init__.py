"""Runs that continue earlier ones."""
