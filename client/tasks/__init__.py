"""Task runs in Python: blocking and asynchronous, over the same requests and replies."""
