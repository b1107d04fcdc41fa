"""Processes in a guest: those that end with the client they were started for, and those that outlive everything."""
