"""Temporal as the API sees it: the connection, the rows of all runs, and what it keeps of one run."""
