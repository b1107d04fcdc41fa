"""Steering the agent of a run that goes on, whoever asks."""
