"""Task runs for every dialect: what can be done with them, and what is told of them. No dialect's names in here."""
