"""How a running agent is steered: what is asked of it, and what it asks, beside its messages."""
