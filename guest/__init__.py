"""What runs inside a virtual machine, and what its host has to know of it."""
