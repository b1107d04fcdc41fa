"""What the Task Orchestration dialect offers of the machine of a run: commands in it, and its files."""
