"""What clients tell of runs, and the workflow of a run that is only told: its agent works elsewhere."""
