"""The commands about virtual machines and their images."""
