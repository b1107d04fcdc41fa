"""`sandbox task`: the agent of a run, while it runs."""
