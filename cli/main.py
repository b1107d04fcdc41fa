"""Entry point of the command `sandbox`."""


def run() -> None:
    """Run the command line."""
