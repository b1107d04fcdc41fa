"""What is kept of processes beyond their machines."""
