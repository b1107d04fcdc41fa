"""`python -m cli`: the command `sandbox`, from any interpreter."""

from cli.main import run

run()
