"""The core of a machine behind a host's service: connections to hosts, and what is asked of a machine through them."""
