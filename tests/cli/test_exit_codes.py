"""Every exit code a script can meet, each from its own cause, and none of them undocumented."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.cli.outcome import finish, in_shell, orphaned_pipe
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama, Fault
from tinyllm_cli.cli.exit_codes import ExitCode, exit_code, hint
from tinyllm_cli.errors import TinyLLMError

Provoke = Callable[[Tinyllm, FakeOllama], Finished]


def _down(tinyllm: Tinyllm, ollama: FakeOllama) -> Finished:
    ollama.stop()
    return tinyllm("run", "What?")


def _refused(tinyllm: Tinyllm, ollama: FakeOllama) -> Finished:
    return tinyllm("run", "-m", "nomodel", "What?")


def _cut(tinyllm: Tinyllm, ollama: FakeOllama) -> Finished:
    ollama.inject(Fault.cut())
    return tinyllm("run", "What?")


def _no_store(tinyllm: Tinyllm, ollama: FakeOllama) -> Finished:
    tinyllm.snapshot.mkdir(parents=True, mode=0o700)
    return tinyllm("cache-stats")


def _signalled(number: signal.Signals) -> Provoke:
    def provoke(tinyllm: Tinyllm, ollama: FakeOllama) -> Finished:
        barrier = ollama.hold()
        process = tinyllm.start("run", "What?")
        barrier.wait_for(1)
        process.send_signal(number)
        return finish(process)

    return provoke


#: How each code comes about. BUG cannot be provoked on purpose.
CAUSES: dict[ExitCode, Provoke] = {
    ExitCode.OK: lambda tinyllm, ollama: tinyllm("run", "What?"),
    ExitCode.USAGE: lambda tinyllm, ollama: tinyllm("run", "--nonsense"),
    ExitCode.UNREACHABLE: _down,
    ExitCode.REFUSED: _refused,
    ExitCode.INCOMPLETE: _cut,
    ExitCode.CACHE: _no_store,
    ExitCode.CACHE_MISS: lambda tinyllm, ollama: tinyllm("run", "--cache-only", "What?"),
    ExitCode.OUTPUT: lambda tinyllm, ollama: in_shell(tinyllm, '"$@" >&-', "--help"),
    ExitCode.BROKEN_PIPE: lambda tinyllm, ollama: finish(
        tinyllm.start("--help", stdout=orphaned_pipe())
    ),
    ExitCode.HANGUP: _signalled(signal.SIGHUP),
    ExitCode.INTERRUPTED: _signalled(signal.SIGINT),
    ExitCode.TERMINATED: _signalled(signal.SIGTERM),
}
QUIET = (ExitCode.OK, ExitCode.BROKEN_PIPE, *(code for code in ExitCode if code > 128))


def test_every_code_has_a_cause() -> None:
    assert set(CAUSES) == set(ExitCode) - {ExitCode.BUG}


@pytest.mark.parametrize("code", CAUSES, ids=lambda code: code.name)
def test_each_cause_has_its_code(tinyllm: Tinyllm, ollama: FakeOllama, code: ExitCode) -> None:
    done = CAUSES[code](tinyllm, ollama)
    assert done.code == code
    lines = done.complaint.splitlines()
    if code in QUIET:
        assert lines == []
    else:
        assert [line.split(":")[0] for line in lines] == ["tinyllm", "hint"]


def test_every_error_has_a_code_and_a_hint() -> None:
    kinds, waiting = set[type[TinyLLMError]](), [TinyLLMError]
    while waiting:
        kind = waiting.pop()
        kinds.add(kind)
        waiting += kind.__subclasses__()
    assert len(kinds) >= 14
    for kind in kinds - {TinyLLMError}:
        error = kind.__new__(kind)
        error.hint = None
        assert exit_code(error) is not ExitCode.BUG, kind
        assert hint(error), kind


def test_a_bug_is_one_line_and_a_traceback_only_on_demand(tinyllm: Tinyllm) -> None:
    """A module that cannot be loaded stands in for a bug of ours."""
    broken = tinyllm.home / "broken"
    (broken / "rich").mkdir(parents=True)
    (broken / "rich" / "__init__.py").write_text("raise RuntimeError('broken on purpose')\n")
    environ = {"PYTHONPATH": str(broken)}
    done = tinyllm("cache-stats", environ=environ)
    assert (done.code, done.out) == (ExitCode.BUG, b"")
    reason, hint_line = done.complaint.splitlines()
    assert reason == "tinyllm: a bug in tinyllm: RuntimeError: broken on purpose"
    assert "TINYLLM_LOG_LEVEL=debug" in hint_line
    told = tinyllm("cache-stats", environ={**environ, "TINYLLM_LOG_LEVEL": "debug"})
    assert told.code == ExitCode.BUG and b"Traceback" in told.err


@pytest.mark.parametrize("command", ["run", "cache-stats", "cache-clear"])
@pytest.mark.parametrize(
    "arguments", [("--nonsense",), ("--cache-dir",), ("-Z",), ("one", "two", "three")], ids=" ".join
)
def test_usage_errors_point_to_the_commands_help(
    tinyllm: Tinyllm, command: str, arguments: tuple[str, ...]
) -> None:
    done = tinyllm(command, *arguments)
    assert (done.code, done.out) == (2, b"")
    wanted = "tinyllm" if arguments == ("--cache-dir",) else f"tinyllm {command}"
    assert f"hint: see `{wanted} --help`" in done.complaint
    assert len(done.complaint.splitlines()) == 2


def test_help_and_version_succeed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    for arguments in ((), ("-h",), ("--help",), ("run", "-h"), ("cache-clear", "--help")):
        done = tinyllm(*arguments)
        assert (done.code, done.err, done.out[:7]) == (0, b"", b"Usage: ")
    for flag in ("--version", "-V"):
        assert tinyllm(flag).out.startswith(b"tinyllm ")
    assert not tinyllm.cache_dir.exists() and ollama.log == []
