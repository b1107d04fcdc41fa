"""``python -m benchmarks``: the command ``sandbox bench``."""

from __future__ import annotations

import sys

from cli.main import run

sys.argv.insert(1, "bench")
run()
