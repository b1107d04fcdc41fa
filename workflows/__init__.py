"""The durable logic and its contracts. Deterministic: nothing in here does I/O."""
