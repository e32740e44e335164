"""Do bytes, settings and command lines that nobody should send end as documented? Run by reliability.py."""

from __future__ import annotations

import collections
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from processes import TINYLLM, fresh_home

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests/

from tests.fake_ollama import FakeOllama
from tests.faults.hostile import PARSERS, complaint, invocations, parser_inputs, parses


def summary(inputs: int, runs: int, seed: int) -> Iterator[str]:
    """Yield what came of that many inputs to the parsers and that many runs of the command."""
    taken: collections.Counter[bool] = collections.Counter()
    errors: list[str] = []
    for one in itertools.islice(parser_inputs(seed), inputs):
        try:
            taken[parses(one)] += 1
        except Exception as exc:  # noqa: BLE001 - any at all is what is counted
            errors.append(f"{one.parser}: {exc!r}")
    yield (
        f"Bytes: {inputs:,} inputs to {len(PARSERS)} parsers, {taken[True]:,} taken, "
        f"{taken[False]:,} refused with the parser's own error, **{len(errors)} other errors**."
    )
    yield from (f"- {error}" for error in errors[:10])
    yield ""
    codes: collections.Counter[int] = collections.Counter()
    bad: list[str] = []
    with FakeOllama() as ollama, tempfile.TemporaryDirectory() as home:
        environ = fresh_home(home, ollama.url)
        for run in itertools.islice(invocations(seed), runs):
            done = subprocess.run(
                [*TINYLLM, *run.arguments],
                input=run.stdin,
                env={**environ, **run.environ},
                cwd=home,
                capture_output=True,
            )
            codes[done.returncode] += 1
            wrong = complaint(done.returncode, done.stdout, done.stderr)
            if wrong:
                bad.append(f"{wrong}: {run.arguments} with {run.environ}"[:200])
    ends = ", ".join(f"{code}: {count:,}" for code, count in sorted(codes.items()))
    yield (
        f"Command lines: {runs:,} runs, exit codes {ends}; **{len(bad)} ended otherwise than "
        "documented** (a traceback, another exit code, more than two lines of error)."
    )
    yield from (f"- {one}" for one in bad[:10])
