"""The REST service: thin translations over one core."""
