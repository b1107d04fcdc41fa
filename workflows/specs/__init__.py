"""What users may write, and the same as processes hand it to one another."""
