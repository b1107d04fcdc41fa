"""The work of a run onto a branch of its git host, from the VM host, and what asks for it to be merged."""
