"""The entry point of the `tinyllm` command; nothing is imported before it is known to be needed."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    # loading modules makes no garbage, looking for it costs a hit a twentieth of its time;
    # a command that goes on to ask the model turns the collector on again
    gc.disable()
    try:
        from .cli.entry import run_app

        return run_app()
    except KeyboardInterrupt:  # while the modules were still being loaded
        return 130


if __name__ == "__main__":
    sys.exit(main())
