"""Sandbox environments in the bucket: what servers keep of them, and VM hosts read."""
