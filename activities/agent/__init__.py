"""The agent of a run: started once, followed to its end, spoken to, stopped."""
