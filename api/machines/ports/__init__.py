"""Ports of a machine for browsers and programs: an HTTP and WebSocket reverse proxy over bytes through its host."""
