"""Schemas that users write for values, and the comparison of values with them."""
