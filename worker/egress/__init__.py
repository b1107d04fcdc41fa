"""The way out of guests: one proxy for a host, which decides each connection by its machine's policy in force."""
