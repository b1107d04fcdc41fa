"""Credentials that the egress proxy puts into requests to hosts for which it ends a guest's TLS."""
