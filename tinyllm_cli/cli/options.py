"""Every option that more than one command takes, and those of `run`: names and help texts, once each."""

# No `from __future__ import annotations`: see app.py.
from pathlib import Path
from typing import Annotated

import typer

Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "--cache-backend",
        metavar="memory|redis|tiered",
        help="Which cache: this user's snapshot, a shared Redis, or both.",
        show_default=False,
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir", metavar="DIR", help="Directory of the snapshot.", show_default=False
    ),
]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Address of Redis.", show_default=False),
]
RedisHost = Annotated[
    str | None,
    typer.Option("--redis-host", metavar="HOST", help="Host of Redis.", show_default=False),
]
RedisPort = Annotated[
    str | None,
    typer.Option("--redis-port", metavar="PORT", help="Port of Redis.", show_default=False),
]
Prompt = Annotated[
    str | None,
    typer.Argument(
        help="The question. Piped input and files come before it. After `--` it may begin with -.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model to ask.", show_default="qwen2.5:0.5b"),
]
System = Annotated[
    str | None,
    typer.Option("--system", "-s", help="System prompt.", show_default=False),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="Sampling temperature.", show_default="0.3"),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help="Most tokens to write.", show_default="2000"),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="Any Ollama option, such as num_ctx=8192 or stop=END; repeatable.",
        show_default=False,
    ),
]
JsonMode = Annotated[bool, typer.Option("--json-mode", help="Ask for a JSON answer.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="json|FILE",
        help="json, or a file with a JSON schema.",
        show_default=False,
    ),
]
Image = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="Show an image; repeatable.", show_default=False),
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think", help="Have a thinking model think, or not.", show_default=False
    ),
]
ThinkLevel = Annotated[
    str | None,
    typer.Option(
        "--think-level",
        metavar="low|medium|high|max",
        help="How hard to think.",
        show_default=False,
    ),
]
File = Annotated[
    list[str] | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="Read the prompt, or what comes before it, from a file; - is standard "
        "input; repeatable.",
        show_default=False,
    ),
]
Stdin = Annotated[
    bool,
    typer.Option("--stdin/--no-stdin", help="Read piped standard input as part of the prompt."),
]
Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="Print the answer as it comes.")]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print one JSON record instead of the answer.")
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Print control characters as they are on a terminal too.")
]
Cache = Annotated[
    bool | None,
    typer.Option(
        "--cache/--no-cache",
        help="Use the cache; --no-cache neither reads nor stores.",
        show_default="cache",
    ),
]
Refresh = Annotated[
    bool, typer.Option("--refresh", help="Ask again and overwrite the stored answer.")
]
CacheOnly = Annotated[
    bool, typer.Option("--cache-only", help="Never ask the model; exit 7 if nothing is stored.")
]
RequireCache = Annotated[
    bool, typer.Option("--require-cache", help="Fail (exit 6) if the cache does not work.")
]
CacheBackend = Annotated[
    str | None,
    typer.Option(
        "--cache-backend",
        metavar="memory|redis|tiered",
        help="Where answers are kept: here, in a shared Redis, or in both.",
        show_default="memory",
    ),
]
CacheTtl = Annotated[
    str | None,
    typer.Option(
        "--cache-ttl",
        metavar="TIME",
        help="How long the answer is kept: seconds, 30s, 10m, 12h, 7d, never.",
        show_default="3600",
    ),
]
CacheMaxEntries = Annotated[
    str | None,
    typer.Option(
        "--cache-max-entries", metavar="N", help="Most answers kept.", show_default="10000"
    ),
]
CacheMaxBytes = Annotated[
    str | None,
    typer.Option(
        "--cache-max-bytes", metavar="SIZE", help="Most bytes kept.", show_default="256MiB"
    ),
]
CacheEviction = Annotated[
    str | None,
    typer.Option(
        "--cache-eviction",
        metavar="lru|cost",
        help="What goes first when the cache is full: the least recently used, or what is "
        "cheapest to ask again for the room it takes.",
        show_default="lru",
    ),
]
CacheWhen = Annotated[
    str | None,
    typer.Option(
        "--cache-when",
        metavar="all|deterministic",
        help="deterministic: leave alone what the model may answer differently each time.",
        show_default="all",
    ),
]
Sample = Annotated[
    int | None,
    typer.Option(
        "--sample",
        metavar="N",
        min=1,
        help="The N-th answer to the same question.",
        show_default="1",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        min=1,
        help="N answers to the same question; only those not given before are generated.",
        show_default=False,
    ),
]
ReplaySpeed = Annotated[
    float | None,
    typer.Option(
        "--replay-speed",
        metavar="X",
        help="Print a stored answer at the pace it was made, times X, instead of at once.",
        show_default=False,
    ),
]
StaleWhileRevalidate = Annotated[
    str | None,
    typer.Option(
        "--stale-while-revalidate",
        metavar="TIME",
        help="For this long past its TTL an answer still serves while it is renewed behind.",
        show_default="0",
    ),
]
StaleIfError = Annotated[
    str | None,
    typer.Option(
        "--stale-if-error",
        metavar="TIME",
        help="For this long past its TTL an answer serves if the model cannot be reached.",
        show_default="0",
    ),
]
Coherence = Annotated[
    str | None,
    typer.Option(
        "--coherence",
        metavar="lazy|strict",
        help="strict: ask Ollama whether the model has changed before answering.",
        show_default="lazy",
    ),
]
DigestMaxAge = Annotated[
    str | None,
    typer.Option(
        "--digest-max-age",
        metavar="TIME",
        help="After this long, check behind an answer whether the model has changed.",
        show_default="60",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="Keep answers apart from other namespaces.",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="auto|ollama|embedded",
        help="Who answers; auto is a tiny embedded model only where no Ollama is.",
        show_default="auto",
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="URL",
        help="Address of Ollama.",
        show_default="OLLAMA_HOST, else http://127.0.0.1:11434",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no warnings; only errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log what the cache does to standard error.")
]
