"""The command line's names and help texts; each command opens one module and no other."""

# No `from __future__ import annotations` here: Typer would evaluate each annotation from its text,
# several times over, on every start.
from typing import Annotated

import typer

from . import options as o

__all__ = ["app", "app_for"]


def _new_app(*, add_completion: bool) -> typer.Typer:
    return typer.Typer(
        name="tinyllm",
        help="Ask a local model once; answer from the cache ever after.",
        add_completion=add_completion,
        rich_markup_mode=None,  # help in plain text starts twice as fast
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _new_app(add_completion=True)


def app_for(first: str | None) -> typer.Typer:
    """Return the app with the one command that the first argument names, or all of it.

    Typer builds the options of every command it has; a hit should pay for those of `run` alone.
    """
    for info in app.registered_commands:
        if info.callback is not None and info.callback.__name__.replace("_", "-") == first:
            narrow = _new_app(add_completion=False)
            narrow.registered_callback = app.registered_callback
            narrow.registered_commands = [info]
            return narrow
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from .._version import __version__

        typer.echo(f"tinyllm {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    prompt: o.Prompt = None,
    model: o.Model = None,
    system: o.System = None,
    temperature: o.Temperature = None,
    max_tokens: o.MaxTokens = None,
    option: o.Option = None,
    json_mode: o.JsonMode = False,
    format: o.Format = None,
    image: o.Image = None,
    think: o.Think = None,
    think_level: o.ThinkLevel = None,
    file: o.File = None,
    stdin: o.Stdin = True,
    stream: o.Stream = True,
    json_output: o.JsonOutput = False,
    raw: o.Raw = False,
    cache: o.Cache = None,
    refresh: o.Refresh = False,
    cache_only: o.CacheOnly = False,
    require_cache: o.RequireCache = False,
    cache_backend: o.CacheBackend = None,
    cache_ttl: o.CacheTtl = None,
    cache_dir: o.CacheDir = None,
    cache_max_entries: o.CacheMaxEntries = None,
    cache_max_bytes: o.CacheMaxBytes = None,
    cache_eviction: o.CacheEviction = None,
    cache_when: o.CacheWhen = None,
    sample: o.Sample = None,
    samples: o.Samples = None,
    replay_speed: o.ReplaySpeed = None,
    stale_while_revalidate: o.StaleWhileRevalidate = None,
    stale_if_error: o.StaleIfError = None,
    coherence: o.Coherence = None,
    digest_max_age: o.DigestMaxAge = None,
    redis_url: o.RedisUrl = None,
    namespace: o.Namespace = None,
    engine: o.Engine = None,
    host: o.Host = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Ask a model, or answer from the cache if it was asked before."""
    from .run import RunArguments, execute

    return execute(
        RunArguments(
            prompt=prompt,
            system=system,
            temperature=temperature,
            max_tokens=max_tokens,
            options=option or [],
            json_mode=json_mode,
            format=format,
            images=image or [],
            think=think_level or think,
            files=file or [],
            stdin=stdin,
            stream=stream,
            json_output=json_output,
            raw=raw,
            refresh=refresh,
            cache_only=cache_only,
            quiet=quiet,
            verbose=verbose,
            sample=sample,
            samples=samples,
            replay_speed=replay_speed,
            flags={
                "model": model,
                "engine": engine,
                "host": host,
                "cache": cache,
                "cache_backend": cache_backend,
                "cache_ttl": cache_ttl,
                "cache_dir": cache_dir,
                "cache_max_entries": cache_max_entries,
                "cache_max_bytes": cache_max_bytes,
                "cache_eviction": cache_eviction,
                "redis_url": redis_url,
                "namespace": namespace,
                "require_cache": require_cache or None,
                "cache_when": cache_when,
                "stale_while_revalidate": stale_while_revalidate,
                "stale_if_error": stale_if_error,
                "coherence": coherence,
                "digest_max_age": digest_max_age,
            },
        )
    )


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="Model to fetch.", show_default=False)],
    engine: o.Engine = None,
    host: o.Host = None,
    quiet: o.Quiet = False,
) -> int:
    """Fetch a model before it is asked."""
    from .pull import execute

    return execute({"engine": engine, "host": host}, model, quiet=quiet)


@app.command()
def cache_stats(
    backend: o.Backend = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Zero the counters afterwards.")] = False,
    cache_dir: o.CacheDir = None,
    redis_url: o.RedisUrl = None,
    redis_host: o.RedisHost = None,
    redis_port: o.RedisPort = None,
    namespace: o.Namespace = None,
) -> int:
    """Show what the cache holds and what it has saved."""
    from .cache_stats import execute

    flags = {
        "cache_backend": backend,
        "cache_dir": cache_dir,
        "redis_url": redis_url,
        "redis_host": redis_host,
        "redis_port": redis_port,
        "namespace": namespace,
    }
    return execute(flags, json_output=json_output, reset=reset)


@app.command()
def cache_clear(
    backend: o.Backend = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Only answers of this model.", show_default=False),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Only answers older than 30s, 12h, 7d.",
            show_default=False,
        ),
    ] = None,
    expired: Annotated[
        bool, typer.Option("--expired", help="Only answers whose TTL has run out.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="PREFIX", help="Only answers whose key begins so.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", "--no-confirm", help="Do not ask first.")
    ] = False,
    cache_dir: o.CacheDir = None,
    redis_url: o.RedisUrl = None,
    redis_host: o.RedisHost = None,
    redis_port: o.RedisPort = None,
    namespace: o.Namespace = None,
) -> int:
    """Remove stored answers, overwriting them."""
    from .cache_clear import ClearArguments, execute

    flags = {
        "cache_backend": backend,
        "cache_dir": cache_dir,
        "redis_url": redis_url,
        "redis_host": redis_host,
        "redis_port": redis_port,
        "namespace": namespace,
    }
    return execute(
        flags,
        ClearArguments(
            model=model, older_than=older_than, expired=expired, key=key, dry_run=dry_run, yes=yes
        ),
    )


@app.command()
def cache_explain(
    prompt: o.Prompt = None,
    model: o.Model = None,
    system: o.System = None,
    temperature: o.Temperature = None,
    max_tokens: o.MaxTokens = None,
    option: o.Option = None,
    json_mode: o.JsonMode = False,
    format: o.Format = None,
    image: o.Image = None,
    think: o.Think = None,
    think_level: o.ThinkLevel = None,
    file: o.File = None,
    stdin: o.Stdin = True,
    json_output: o.JsonOutput = False,
    cache_dir: o.CacheDir = None,
    cache_when: o.CacheWhen = None,
    sample: o.Sample = None,
    stale_while_revalidate: o.StaleWhileRevalidate = None,
    stale_if_error: o.StaleIfError = None,
    namespace: o.Namespace = None,
    engine: o.Engine = None,
    host: o.Host = None,
) -> int:
    """Say whether `run` would be answered from the cache, and if not, why."""
    from .cache_explain import execute
    from .run import RunArguments

    return execute(
        RunArguments(
            prompt=prompt,
            system=system,
            temperature=temperature,
            max_tokens=max_tokens,
            options=option or [],
            json_mode=json_mode,
            format=format,
            images=image or [],
            think=think_level or think,
            files=file or [],
            stdin=stdin,
            json_output=json_output,
            sample=sample,
            flags={
                "model": model,
                "engine": engine,
                "host": host,
                "cache_dir": cache_dir,
                "namespace": namespace,
                "cache_when": cache_when,
                "stale_while_revalidate": stale_while_revalidate,
                "stale_if_error": stale_if_error,
            },
        )
    )


@app.command()
def doctor(
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Mend what can be mended: modes, bad entries, a damaged file."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    model: o.Model = None,
    engine: o.Engine = None,
    host: o.Host = None,
    backend: o.Backend = None,
    cache_dir: o.CacheDir = None,
    redis_url: o.RedisUrl = None,
    redis_host: o.RedisHost = None,
    redis_port: o.RedisPort = None,
    namespace: o.Namespace = None,
) -> int:
    """Check this installation: settings, snapshot, model, Redis."""
    from .doctor import execute

    flags = {
        "model": model,
        "engine": engine,
        "host": host,
        "cache_backend": backend,
        "cache_dir": cache_dir,
        "redis_url": redis_url,
        "redis_host": redis_host,
        "redis_port": redis_port,
        "namespace": namespace,
    }
    return execute(flags, fix=fix, json_output=json_output)
