"""The workflow of a parent task: what is to be done, of which task runs are the executions."""
