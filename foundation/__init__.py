"""What every room stands on: the error tree, the settings and the units. Imports nothing of the project."""
