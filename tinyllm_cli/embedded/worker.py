"""The helper process: one engine, orders in by standard input, pieces of answers out.

A crash of the engine ends this process and no other. One line of JSON per message, both ways; no
port, no socket. Whatever the engine itself prints goes to standard error. It ends when its input
does, so it never outlives the process that started it, however that one ended.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import Any, TextIO

from .engine import Engine, EngineError, Order

__all__ = ["main", "serve"]


def main() -> None:
    """Serve the real engine until the input ends."""
    from .xllamacpp_engine import XllamacppEngine

    serve(XllamacppEngine())


def serve(engine: Engine) -> None:
    """Answer orders with an engine until the input ends, then end the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to judge
    answers = open(os.dup(1), "w", encoding="utf-8", newline="\n")  # noqa: SIM115 - to the end
    os.dup2(2, 1)
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_work, args=(engine, orders, answers), daemon=True).start()
    for line in sys.stdin.buffer:
        orders.put(line)
    os._exit(0)  # at once: the thread may be deep inside the engine


def _work(engine: Engine, orders: queue.SimpleQueue[bytes], answers: TextIO) -> None:
    loaded: tuple[object, ...] | None = None
    while True:
        asked = json.loads(orders.get())
        started = time.monotonic_ns()
        try:
            wanted = (asked["path"], asked["num_ctx"], asked["digest"])
            load_ns = 0
            if wanted != loaded:
                loaded = None
                engine.load(asked["path"], asked["num_ctx"])
                loaded = wanted
                load_ns = time.monotonic_ns() - started
            ending = engine.generate(
                Order(**asked["order"]),
                lambda text, thinking: _send(answers, text=text, thinking=thinking),
            )
            _send(
                answers,
                done=True,
                reason=ending.reason,
                load_ns=load_ns,
                total_ns=time.monotonic_ns() - started,
                prompt_tokens=ending.prompt_tokens,
                prompt_ns=ending.prompt_ns,
                tokens=ending.tokens,
                tokens_ns=ending.tokens_ns,
            )
        except EngineError as exc:
            _send(answers, error=str(exc), status=exc.status, hint=exc.hint)
        except Exception as exc:  # noqa: BLE001 - the last border: the parent says it in one line
            _send(answers, error=f"{type(exc).__name__}: {exc}", status=500, hint=None)


def _send(answers: TextIO, **message: Any) -> None:
    try:
        answers.write(json.dumps(message) + "\n")
        answers.flush()
    except OSError:  # the parent has gone
        os._exit(0)


if __name__ == "__main__":
    main()
