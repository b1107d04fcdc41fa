"""The core of what clients tell: local runs, the records of all runs, and entries of their logs."""
