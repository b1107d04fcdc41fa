"""``python -m benchmarks``: the command ``sandbox bench``, and with ``soak`` as its first word the soak."""

from __future__ import annotations

import sys

if sys.argv[1:2] == ["soak"]:
    from benchmarks.soak.run import main

    try:
        sys.exit(main(sys.argv[2:]))
    except KeyboardInterrupt:
        # All that it had started has ended by now.
        sys.exit(130)

from cli.main import run

sys.argv.insert(1, "bench")
run()
