"""The commands about this host: what is missing, what can be measured, what can be removed."""
