"""Cases of logs that clients write."""
