"""Serve a fake Ollama from the command line until SIGINT or SIGTERM."""

import argparse
import signal
import sys
import threading
from types import FrameType

from .server import FakeOllama


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_ollama", description=__doc__)
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--model", action="append", default=[], metavar="NAME")
    parser.add_argument("--token-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--version", default="")
    options = parser.parse_args()

    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    # Before the port answers, so that a signal right after the first request ends cleanly too.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        server = FakeOllama(models=options.model, port=options.port)
        server.token_delay = options.token_delay
        server.version = options.version or server.version
        server.start()
    except (OSError, ValueError) as error:
        print(f"fake Ollama: {error}", file=sys.stderr)
        return 1
    print(f"fake Ollama on {server.url}", flush=True)
    stopped.wait()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
