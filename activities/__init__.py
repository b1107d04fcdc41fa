"""The steps of a task run, one module each; every step may be called twice."""
