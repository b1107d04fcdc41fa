"""What clients tell of a run that is executed here."""
