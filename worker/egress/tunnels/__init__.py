"""Tunnels that guests open by CONNECT: what they begin with, and the bytes that go both ways in them."""
