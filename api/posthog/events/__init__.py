"""The entries of a run's log in the words of the Agent Client Protocol."""
