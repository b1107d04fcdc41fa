"""QEMU: its command line, its process, its monitor, and what it may do on its host."""
