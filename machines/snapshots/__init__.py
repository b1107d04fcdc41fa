"""Guests as they stood: their memory and devices as files, and the templates they are taken from."""
