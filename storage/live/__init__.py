"""Run logs of this host as they are written, before the bucket has them."""
