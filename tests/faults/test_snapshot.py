"""Everything that can be wrong with the disk, one row of the fault matrix per test.

The rule for all of them: the answer comes as it would without a cache, exit 0, at most one line on
standard error, nothing wrong is ever served, and once the fault is gone the next run is an ordinary
hit or miss with nothing done by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.backends.processes import run
from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import COMMAND, Finished, Tinyllm
from tests.fake_ollama import FakeOllama
from tests.samples import entry, key_of
from tinyllm_cli.backends.memory import InMemoryBackend

slow = pytest.mark.slow
later = partial(pytest.param, marks=slow)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="this is done in Linux's way")
root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may do this to a machine"
)
for_root_later = (root_only, slow)
KNOWN = "Known before?"
NEW = "New?"
NOBODY = 65534
PACKAGE = Path(__file__).parents[2] / "tinyllm_cli"


def truth(body: Any) -> str:
    """Return the one right answer to a question."""
    return f"Answer {key_of(body['prompt'])[:20]} is right."


class User:
    """Somebody who asked one question while all was well."""

    def __init__(self, tinyllm: Tinyllm, ollama: FakeOllama) -> None:
        ollama.answer = truth
        self.tinyllm = tinyllm
        self.ollama = ollama
        first = tinyllm("run", KNOWN)
        assert (first.code, first.err) == (0, b"")
        self.known = first.out
        self.path = tinyllm.snapshot
        without = tinyllm("run", NEW, "--no-cache")
        assert without.code == 0
        self.new = without.out

    def right(self, done: Finished, *words: str, prompt: str = NEW) -> None:
        """The one right answer came, and at most one line says what the matter is."""
        assert (done.code, done.out) == (0, self.known if prompt == KNOWN else self.new), done
        assert done.err.count(b"\n") <= 1, done
        assert not done.err or done.err.startswith(b"tinyllm: cache: "), done
        for word in words:
            assert word in done.complaint, done

    def struck(self, done: Finished, *words: str) -> None:
        """The model answered, and one line says why the answer is not stored."""
        self.right(done, *words)
        assert done.err, done

    def healed(self, *, kept: bool = True) -> None:
        """All is as ever: what was stored is a hit if it was kept, and new answers are stored."""
        asked = self.ollama.generations
        known = self.tinyllm("run", KNOWN)
        assert (known.code, known.out, known.err) == (0, self.known, b"")
        assert self.ollama.generations == asked + (not kept)
        for options in ((), ("--cache-only",)):
            done = self.tinyllm("run", NEW, *options)
            assert (done.code, done.out, done.err) == (0, self.new, b"")
        assert self.ollama.generations <= asked + (not kept) + 1


@pytest.fixture
def user(tinyllm: Tinyllm, ollama: FakeOllama) -> User:
    return User(tinyllm, ollama)


def tool(name: str) -> str:
    """Return where a program is; the row is skipped without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def beneath(user: User, command: Sequence[str], *arguments: str) -> Finished:
    """Run tinyllm as the argument of another command."""
    done = subprocess.run(
        [*command, *COMMAND, *arguments],
        env=user.tinyllm.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=user.tinyllm.home,
        timeout=120,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


# --- killed, and told no


def has_been_asked(before: int, ollama: FakeOllama) -> bool:
    return len(ollama.requests("/api/generate")) > before


@pytest.mark.parametrize("kills", [4, later(40)])
def test_s01_killed_at_random_moments(user: User, kills: int) -> None:
    """What was printed before is stored and stays; the one killed is asked again without a word."""
    seed = random.Random(kills)
    for n in range(kills):
        asked = len(user.ollama.requests("/api/generate"))
        process = user.tinyllm.start("run", f"Question {n}?", stdout=subprocess.PIPE)
        user.ollama.wait_until(partial(has_been_asked, asked), 30)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seed.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        finish(process)
        if n % 4 == 3:
            done = user.tinyllm("run", f"Question {n}?")
            assert (done.code, done.err) == (0, b"")
            again = user.tinyllm("run", f"Question {n}?", "--cache-only")
            assert (again.code, again.out, again.err) == (0, done.out, b"")
    user.healed()


WRITES = "pwrite64,fsync,fdatasync,ftruncate,unlink"


def injected(user: User, fault: str, when: str) -> tuple[Finished, bool]:
    """Ask the new question with one of the system calls that write the file failing."""
    trace = user.tinyllm.home / "trace"
    done = beneath(
        user,
        [
            *(tool("strace"), "-f", "-qq", "-o", str(trace), "-P", str(user.path)),
            *("-P", f"{user.path}-journal", "-e", f"trace={WRITES}"),
            *("-e", f"inject={WRITES}:{fault}:when={when}"),
        ],
        *("run", NEW),
    )
    text = trace.read_text()
    return done, "INJECTED" in text or "killed by SIGKILL" in text


@slow
@linux_only
def test_s02_killed_at_each_system_call(user: User) -> None:
    """Every fifth; the store below is killed at each in the tests of the backends."""
    sound = user.path.read_bytes()
    for number in range(2, 300, 5):
        for file in user.path.parent.iterdir():
            file.unlink()
        user.path.write_bytes(sound)
        user.path.chmod(0o600)
        done, hit = injected(user, "signal=KILL", str(number))
        if not hit:
            assert (done.code, done.out, done.err) == (0, user.new, b"")
            break
        user.healed()
    assert number > 10


@slow
@linux_only
@pytest.mark.parametrize(
    ("error", "lasting", "step"), [("EIO", "", 13), ("ENOSPC", "", 13), ("EIO", "+", 9)]
)
def test_s03_a_disk_that_fails_at_each_system_call(
    user: User, error: str, lasting: str, step: int
) -> None:
    sound = user.path.read_bytes()
    for number in range(2, 300, step):
        for file in user.path.parent.iterdir():
            file.unlink()
        user.path.write_bytes(sound)
        user.path.chmod(0o600)
        done, hit = injected(user, f"error={error}", f"{number}{lasting}")
        user.right(done)
        if not hit:
            assert done.err == b""
            break
        user.healed()
    assert number > 10


# --- full

FULL = """
set -e
cp -a "$1" "$2"
mount $MOUNT "$1"
chmod 700 "$1"
cp -a "$2/." "$1"
cat /dev/zero > "$1/filling" 2>/dev/null || true
[ -z "$FREE" ] || truncate -s "-$FREE" "$1/filling"
shift 2
"$@"
"""


def on_a_disk(user: User, mount: str, free: int, *arguments: str) -> Finished:
    """Run the command with its cache directory on a file system of its own that is all but full."""
    tool("unshare")
    aside = user.tinyllm.home / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    before = {"MOUNT": mount, "FREE": str(free) if free else ""}
    script = ["unshare", "-m", "env", *(f"{name}={value}" for name, value in before.items())]
    done = beneath(
        user, [*script, "sh", "-c", FULL, "sh", str(user.path.parent), str(aside)], *arguments
    )
    if b"mount: " in done.err or b"unshare: " in done.err:
        pytest.skip(f"no file system may be mounted here: {done.complaint.splitlines()[0]}")
    return done


@linux_only
@root_only
def test_s04_full_disk(user: User) -> None:
    mount = "-t tmpfs -o size=512k t"
    user.right(on_a_disk(user, mount, 0, "run", KNOWN), prompt=KNOWN)
    user.struck(on_a_disk(user, mount, 0, "run", NEW), "full")
    assert user.ollama.generations == 3
    user.healed()


@pytest.mark.slow
@linux_only
@root_only
@pytest.mark.parametrize("block", [4096, *map(later, (1024, 2048))])
def test_s05_nearly_full_disk(user: User, block: int) -> None:
    """A few kilobytes are left, more or fewer than an answer needs; nothing may end in a signal."""
    image = user.tinyllm.home / "disk"
    with open(image, "wb") as file:
        file.truncate(8 * 2**20)
    options = ["-q", "-b", str(block), "-m", "0", "-O", "^has_journal"]
    subprocess.run([tool("mkfs.ext4"), *options, str(image)], check=True, capture_output=True)
    for free in (4, 16, 64) if block == 4096 else (0, 2, 4, 8, 16, 32, 64):
        done = on_a_disk(user, f"-o loop {image}", free * 1024, "run", NEW)
        user.right(done)
        subprocess.run([tool("mkfs.ext4"), *options, str(image)], check=True, capture_output=True)
    user.healed()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
def test_s06_no_file_may_grow(user: User) -> None:
    """A quota, as a limit on the size of files: EFBIG, and a signal that would end others."""
    size = user.path.stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    noise = random.Random(1).randbytes(100_000).hex()
    user.ollama.answer = lambda body: noise
    command = ("run", "Something long?", "--max-tokens", "1000000")
    done = finish(user.tinyllm.start(*command, preexec_fn=limit))
    assert (done.code, done.out) == (0, noise.encode() + b"\n")
    assert done.err.count(b"\n") == 1 and done.err.startswith(b"tinyllm: cache: ")
    user.ollama.answer = truth
    known = finish(user.tinyllm.start("run", KNOWN, preexec_fn=limit))
    user.right(known, prompt=KNOWN)
    user.healed()


# --- not ours to write


def without_privileges() -> None:
    """Let the modes of files count for root as well, whose programs otherwise ignore them."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                os._exit(99)


def modestly(tinyllm: Tinyllm, *arguments: str) -> Finished:
    done = finish(tinyllm.start(*arguments, preexec_fn=without_privileges))
    if done.code == 99:
        pytest.skip("root may not give up its privileges here")
    return done


@linux_only
def test_s07_read_only(user: User) -> None:
    user.path.chmod(0o400)
    user.path.parent.chmod(0o500)
    try:
        user.right(modestly(user.tinyllm, "run", KNOWN), prompt=KNOWN)
        assert user.ollama.generations == 2
        user.struck(modestly(user.tinyllm, "run", NEW))
    finally:
        user.path.parent.chmod(0o700)
        user.path.chmod(0o600)
    user.healed()


@linux_only
def test_s07_a_directory_that_cannot_be_written(user: User) -> None:
    shutil.rmtree(user.path.parent)
    user.path.parent.mkdir(mode=0o500)
    try:
        user.struck(modestly(user.tinyllm, "run", NEW), "cannot create")
        assert_failed(modestly(user.tinyllm, "run", NEW, "--require-cache"), 6, "cannot create")
    finally:
        user.path.parent.chmod(0o700)
    user.healed(kept=False)


@pytest.mark.slow
@linux_only
def test_s07_a_directory_that_cannot_be_made(user: User) -> None:
    shutil.rmtree(user.path.parent)
    user.tinyllm.home.chmod(0o500)
    try:
        user.struck(modestly(user.tinyllm, "run", NEW), "cannot create")
    finally:
        user.tinyllm.home.chmod(0o700)
    user.healed(kept=False)


@pytest.mark.slow
@linux_only
@root_only
def test_s07_a_file_system_mounted_read_only(user: User) -> None:
    tool("unshare")
    script = 'set -e; mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
    begin = ["unshare", "-m", "sh", "-c", script, "sh", str(user.path.parent)]
    done = beneath(user, begin, "run", KNOWN)
    if b"mount: " in done.err:
        pytest.skip(f"nothing may be mounted here: {done.complaint.splitlines()[0]}")
    user.right(done, prompt=KNOWN)
    user.struck(beneath(user, begin, "run", NEW))
    user.healed()


@pytest.mark.parametrize("home", ["/nonexistent", "", "relative"])
def test_s07_a_home_that_is_none(tinyllm: Tinyllm, home: str) -> None:
    del tinyllm.environ["TINYLLM_CACHE_DIR"], tinyllm.environ["TINYLLM_CONFIG_DIR"]
    xdg = str(tinyllm.home / "xdg")  # this machine's real home is not for tests
    done = tinyllm("run", "What?", environ={"HOME": home, "XDG_CACHE_HOME": xdg})
    assert (done.code, done.err) == (0, b"")


@linux_only
@root_only
def test_s07_a_user_nobody_has_heard_of(user: User) -> None:
    """No name, no home, no right to write anywhere."""
    for name in ("TINYLLM_CACHE_DIR", "TINYLLM_CONFIG_DIR", "HOME"):
        del user.tinyllm.environ[name]
    begin = [tool("setpriv"), "--reuid=54321", "--regid=54321", "--clear-groups"]
    readable = beneath(user, begin, "--version")
    if readable.code != 0:
        pytest.skip("the program itself may not be read by everybody here")
    user.struck(beneath(user, begin, "run", NEW))


def a_directory(path: Path, victim: Path) -> None:
    path.mkdir()


def a_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def a_link_to_nowhere(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not there"))


def a_link_to_anothers_file(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def another_name_of_anothers_file(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def a_file_of_another_user(path: Path, victim: Path) -> None:
    shutil.copy(victim, path)
    os.chown(path, NOBODY, NOBODY)


def in_a_directory_of_another_user(path: Path, victim: Path) -> None:
    shutil.copy(victim, path)
    os.chown(path.parent, NOBODY, NOBODY)


def in_a_directory_anybody_may_write(path: Path, victim: Path) -> None:
    path.parent.chmod(0o777)


def in_a_directory_a_group_may_write(path: Path, victim: Path) -> None:
    path.parent.chmod(0o770)


def in_what_is_no_directory(path: Path, victim: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("mine")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("place", "why"),
    [
        later(a_directory, "not a regular file"),
        (a_pipe, "not a regular file"),
        later(a_link_to_nowhere, "not a regular file"),
        (a_link_to_anothers_file, "not a regular file"),
        later(another_name_of_anothers_file, ""),
        pytest.param(a_file_of_another_user, "belongs to another user", marks=for_root_later),
        pytest.param(
            in_a_directory_of_another_user, "belongs to another user", marks=for_root_later
        ),
        (in_a_directory_anybody_may_write, "other users"),
        later(in_a_directory_a_group_may_write, "other users"),
        later(in_what_is_no_directory, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_s08_not_ours_alone(user: User, place: Callable[[Path, Path], None], why: str) -> None:
    victim = user.tinyllm.home / "victim"
    shutil.copy(user.path, victim)
    before = victim.read_bytes()
    shutil.rmtree(user.path.parent)
    user.path.parent.mkdir(mode=0o700)
    place(user.path, victim)
    user.struck(user.tinyllm("run", NEW), why)
    assert_failed(user.tinyllm("run", NEW, "--require-cache"), 6, why)
    assert_failed(user.tinyllm("cache-stats"), 6, why)
    assert_failed(user.tinyllm("cache-clear", "--yes"), 6, why)
    quiet = user.tinyllm("run", NEW, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, user.new, b"")
    assert user.tinyllm("run", NEW, "--cache-only").code == 7
    assert user.tinyllm("run", NEW, "--no-cache").err == b""
    assert victim.read_bytes() == before
    if user.path.parent.is_dir():
        shutil.rmtree(user.path.parent)
    else:
        assert user.path.parent.read_text() == "mine"
        user.path.parent.unlink()
    user.healed(kept=False)


# --- damaged


@pytest.mark.few(1)
@pytest.mark.parametrize("flips", [8, later(60)])
def test_s09_a_flipped_bit(user: User, flips: int) -> None:
    seed = random.Random(flips)
    sound = user.path.read_bytes()
    for _ in range(flips):
        content = bytearray(sound)
        content[seed.randrange(len(content))] ^= 1 << seed.randrange(8)
        shutil.rmtree(user.path.parent)
        user.path.parent.mkdir(mode=0o700)
        user.path.write_bytes(content)
        user.path.chmod(0o600)
        user.right(user.tinyllm("run", KNOWN), prompt=KNOWN)
        again = user.tinyllm("run", KNOWN)
        assert (again.code, again.out, again.err) == (0, user.known, b"")


def test_s09_an_entry_that_was_tampered_with(user: User) -> None:
    database = sqlite3.connect(user.path)
    with database:
        forged = "CAST(replace(CAST(body AS TEXT), 'Answer', 'Forged') AS BLOB)"
        database.execute(f"UPDATE entries SET body = {forged}")
    database.close()
    done = user.tinyllm("run", KNOWN)
    assert (done.code, done.out, done.err) == (0, user.known, b"")
    assert user.ollama.generations == 3
    user.healed()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda whole: b"not a database\n" * 500,
    "zeros": lambda whole: bytes(len(whole)),
    "cut in the middle": lambda whole: whole[: len(whole) // 2 + 17],
    "a page alone": lambda whole: whole[:4096],
    "its header alone": lambda whole: whole[:100],
    "noise": lambda whole: random.Random(1).randbytes(len(whole)),
}


@pytest.mark.parametrize("damage", ["text", *map(later, [*DAMAGES][1:])])
def test_s10_damaged_as_a_whole(user: User, damage: str) -> None:
    user.path.write_bytes(DAMAGES[damage](user.path.read_bytes()))
    user.struck(user.tinyllm("run", NEW), "moved to", "started afresh")
    assert user.ollama.generations == 3
    aside = [file for file in user.path.parent.glob("*.corrupt-*") if "journal" not in file.name]
    assert len(aside) == 1
    user.healed(kept=False)


def test_s10_emptied(user: User) -> None:
    os.truncate(user.path, 0)
    done = user.tinyllm("run", NEW)
    assert (done.code, done.out, done.err) == (0, user.new, b"")
    user.healed(kept=False)


INTERRUPTED = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript("PRAGMA journal_mode=DELETE; PRAGMA cache_size=2; PRAGMA cache_spill=1; BEGIN")
for number in range(300):
    db.execute("UPDATE entries SET body = zeroblob(3000), rank = rank + ?", (number,))
    db.execute("INSERT INTO evicted VALUES (hex(randomblob(2000)), 1)")
os._exit(0)
"""


@pytest.mark.parametrize("deleted", [False, later(True)], ids=["left", "deleted"])
def test_s11_the_journal_of_a_write_that_broke_off(user: User, deleted: bool) -> None:
    """With its journal the write is undone; without, whatever is read must pass its digest."""
    subprocess.run([sys.executable, "-c", INTERRUPTED, str(user.path)], check=True)
    journal = user.path.with_name(f"{user.path.name}-journal")
    assert journal.stat().st_size > 0
    if deleted:
        journal.unlink()
    user.right(user.tinyllm("run", KNOWN), prompt=KNOWN)
    assert user.ollama.generations == (3 if deleted else 2)
    user.healed()


@pytest.mark.slow
def test_s11_files_that_others_left_beside_it(user: User) -> None:
    """The journal of another database, and what an old release would have written."""
    other = user.tinyllm.home / "other.sqlite3"
    made = sqlite3.connect(other)
    made.executescript("CREATE TABLE entries (x); CREATE TABLE evicted (x, y)")
    made.execute("INSERT INTO entries VALUES (zeroblob(9000))")
    made.commit()
    made.close()
    interrupted = INTERRUPTED.replace("SET body = zeroblob(3000), rank = rank + ?", "SET x = ?")
    subprocess.run([sys.executable, "-c", interrupted, str(other)], check=True)
    shutil.copy(f"{other}-journal", f"{user.path}-journal")
    for suffix in ("-wal", "-shm"):
        Path(f"{user.path}{suffix}").write_bytes(b"left over " * 3000)
    user.right(user.tinyllm("run", KNOWN), prompt=KNOWN)
    user.healed()


def test_s12_of_a_newer_release(user: User) -> None:
    database = sqlite3.connect(user.path)
    database.executescript("CREATE TABLE future (a); PRAGMA user_version = 99")
    database.close()
    before = user.path.read_bytes()
    user.struck(user.tinyllm("run", NEW), "newer tinyllm")
    assert user.path.read_bytes() == before
    assert_failed(user.tinyllm("cache-clear", "--yes"), 6, "newer tinyllm")
    assert user.path.read_bytes() == before
    database = sqlite3.connect(user.path)
    database.executescript("DROP TABLE future; PRAGMA user_version = 1")
    database.close()
    user.healed()


@pytest.mark.parametrize(
    "statement",
    [
        later("PRAGMA user_version = 0"),
        later("PRAGMA user_version = -7"),
        later("ALTER TABLE entries ADD COLUMN more"),
        later("DROP TABLE digests"),
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN UPDATE entries SET body = 'mine'; END",
        later(
            "DROP TABLE digests; CREATE VIEW digests AS SELECT 'h' host, 'm' model, 'd' digest, 1 at"
        ),
    ],
)
def test_s12_of_another_make(user: User, statement: str) -> None:
    database = sqlite3.connect(user.path)
    database.executescript(statement)
    database.close()
    user.struck(user.tinyllm("run", NEW), "moved to", "started afresh")
    user.healed(kept=False)


def next_release(folder: Path) -> dict[str, str]:
    """Return the environment in which the command is that of a release whose formats are all new."""
    package = folder / "tinyllm_cli"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, old, new in (
        ("codec.py", "FORMAT_VERSION = 1", "FORMAT_VERSION = 2"),
        ("key.py", "KEY_VERSION = 1", "KEY_VERSION = 2"),
        ("config.py", "snapshot-v1.sqlite3", "snapshot-v2.sqlite3"),
        ("backends/snapshot.py", "SCHEMA_VERSION = 1", "SCHEMA_VERSION = 2"),
    ):
        text = (package / module).read_text()
        assert text.count(old) == 1, old
        (package / module).write_text(text.replace(old, new))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, later(15)])
def test_s13_two_releases_take_turns(user: User, tmp_path: Path, turns: int) -> None:
    """Each has a file of its own, finds there what it stored, and leaves the other's alone."""
    newer = next_release(tmp_path / "newer")
    asked = user.ollama.generations
    for turn in range(turns):
        for environ in ({}, newer):
            user.right(user.tinyllm("run", KNOWN, environ=environ), prompt=KNOWN)
            done = user.tinyllm("run", f"Question {turn}?", environ=environ)
            assert (done.code, done.err) == (0, b"")
    # the newer one did not know the known one yet
    assert user.ollama.generations == asked + 1 + 2 * turns
    assert user.tinyllm("cache-clear", "--yes", environ=newer).code == 0
    user.healed()
    assert {path.name for path in user.path.parent.iterdir()} >= {
        "snapshot-v1.sqlite3",
        "snapshot-v2.sqlite3",
    }


# --- many at once


@pytest.mark.slow
@pytest.mark.parametrize("processes", [6, later(64)])
def test_s14_first_opened_by_many(tinyllm: Tinyllm, ollama: FakeOllama, processes: int) -> None:
    prompts = [f"What is {number}?" for number in range(processes * 2)]
    with ThreadPoolExecutor(processes) as pool:
        misses = [*pool.map(lambda prompt: tinyllm("run", prompt), prompts)]
        assert {(done.code, done.err) for done in misses} == {(0, b"")}
        assert ollama.generations == len(prompts) == len({done.out for done in misses})
        assert stored(tinyllm.snapshot) == len(prompts)
        hits = [*pool.map(lambda prompt: tinyllm("run", prompt), prompts[::2])]
    assert [done.out for done in hits] == [done.out for done in misses[::2]]
    assert {done.err for done in hits} == {b""}
    figures = json.loads(tinyllm("cache-stats", "--json").out)
    assert [figures[name] for name in ("hits", "misses", "sets", "entries")] == [
        processes,
        len(prompts),
        len(prompts),
        len(prompts),
    ]
    assert (figures["errors"], figures["evictions"]) == (0, 0)
    assert ollama.generations == len(prompts)


@slow
def test_s14_many_that_make_room(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    bound = {"TINYLLM_CACHE_MAX_ENTRIES": "10"}
    prompts = [f"What is {number}?" for number in range(64)]
    with ThreadPoolExecutor(32) as pool:
        done = [*pool.map(lambda prompt: tinyllm("run", prompt, environ=bound), prompts)]
    assert {(one.code, one.err) for one in done} == {(0, b"")}
    assert stored(tinyllm.snapshot) == 10
    figures = json.loads(tinyllm("cache-stats", "--json").out)
    assert (figures["evictions"], figures["errors"]) == (54, 0)


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
db.execute("ROLLBACK")
"""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another process lock the file, and stop it."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            holder.send_signal(signal.SIGCONT)
            holder.communicate(b"\n")


@pytest.mark.slow
def test_s15_locked_by_a_process_that_was_stopped(user: User) -> None:
    """The question goes out after a quarter of a second, and the answer is printed as it comes."""
    free = time.monotonic()
    user.tinyllm("run", "Something else?")
    free = time.monotonic() - free
    with locked(user.path):
        barrier = user.ollama.hold()
        started = time.monotonic()
        process = user.tinyllm.start("run", NEW)
        barrier.wait_for(1, timeout=30)
        waited = time.monotonic() - started
        barrier.release()
        done = finish(process)
    user.struck(done, "locked")
    assert waited < free + 0.25 + 0.5
    user.healed()


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("error", ["ENOLCK", later("EIO")])
def test_s16_a_file_system_without_locks(user: User, error: str) -> None:
    begin = [tool("strace"), "-f", "-qq", "-o", "/dev/null", "-P", str(user.path)]
    begin += ["-e", "trace=fcntl", "-e", f"inject=fcntl:error={error}"]
    user.struck(beneath(user, begin, "run", NEW))
    failed = beneath(user, begin, "run", NEW, "--require-cache")
    assert_failed(failed, 6, "TINYLLM_CACHE_DIR")
    user.healed()


@pytest.mark.slow
def test_s17_the_live_file_is_opened_by_nobody_but_sqlite(user: User) -> None:
    """Closing a second handle would drop SQLite's locks in this process.

    Each command tells of every file that Python itself opens; what SQLite opens is not among them.
    """
    watch = user.tinyllm.home / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'open' and 'snapshot-v1' in str(arguments[0]):\n"
        "        os.write(2, b'OPENED ' + str(arguments[0]).encode() + b'\\n')\n"
        "sys.addaudithook(hook)\n"
    )
    environ = {"PYTHONPATH": str(watch)}
    for arguments in (
        ("run", KNOWN),
        ("run", NEW),
        ("cache-stats", "--json"),
        ("doctor", "--json"),
    ):
        done = user.tinyllm(*arguments, environ=environ)
        assert done.code == 0
        assert b"OPENED" not in done.err, done
    shown = user.tinyllm("cache-clear", "-y", environ=environ)
    assert (shown.code, shown.err) == (0, b"")
    # the hook does see what Python opens: a file that has to be made
    shutil.rmtree(user.path.parent)
    assert b"OPENED" in user.tinyllm("run", NEW, environ=environ).err


def test_s18_forked_and_used_from_two_threads(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "snapshot.sqlite3"
    out = run(
        """
import threading
backend = InMemoryBackend(snapshot=sys.argv[1])
store(backend, "parent")
backend.count("m", CacheMetrics(hits=1))  # not yet in the file when the process forks
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        assert text_of(backend, "parent") == "Because."
        threads = [threading.Thread(target=store, args=(backend, f"{number} {n}")) for n in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backend.count("m", CacheMetrics(misses=1))
        sys.exit(0)  # no close(): the counters are written at exit all the same
    children.append(child)
store(backend, "parent again")
print([os.waitpid(child, 0)[1] for child in children])
backend.close_nowait()
stats = backend.stats_nowait()
print(stats.entries, stats.metrics.hits, stats.metrics.misses)
backend.close_nowait()
""",
        path,
    )
    assert out.splitlines() == ["[0, 0, 0, 0]", "10 1 4"]


# --- clocks, limits, sizes

YEAR = 365 * 86_400
CLOCKS = {
    "ten days behind": -10 * 86_400,
    "a year ahead": YEAR,
    "in 2038": int(2**31 - time.time()) + 100,
    "in 2099": 73 * YEAR,
}


def shifted(tinyllm: Tinyllm, expression: str) -> dict[str, str]:
    """Return an environment in which the wall clock is `expression`, of the right time `now`."""
    shift = tinyllm.home / f"shift {len(expression)} {abs(hash(expression))}"
    shift.mkdir(exist_ok=True)
    (shift / "sitecustomize.py").write_text(
        "import time\n_right = time.time\n_calls = iter(range(10**9))\n"
        f"time.time = lambda: (lambda now, call: {expression})(_right(), next(_calls))\n"
    )
    return {"PYTHONPATH": str(shift)}


@pytest.mark.parametrize("clock", ["ten days behind", *map(later, [*CLOCKS][1:])])
def test_s19_another_clock(user: User, clock: str) -> None:
    """What was stored far from now is none, in either direction; nothing becomes immortal."""
    off = shifted(user.tinyllm, f"now + {CLOCKS[clock]}")
    for _ in range(2):
        done = user.tinyllm("run", KNOWN, environ=off)
        assert (done.code, done.out, done.err) == (0, user.known, b"")
    assert user.ollama.generations == 3  # once more, under the other clock
    for command in (("cache-stats",), ("cache-stats", "--json"), ("cache-explain", KNOWN)):
        done = user.tinyllm(*command, environ=off)
        assert (done.code, done.err) == (0, b"")
    # under the right clock that answer is from the future, or from so long ago that it has expired
    done = user.tinyllm("run", KNOWN)
    assert (done.code, done.out, done.err) == (0, user.known, b"")
    assert user.ollama.generations == 4
    user.healed()


@pytest.mark.slow
def test_s19_a_clock_that_jumps_during_the_run(user: User) -> None:
    jumping = shifted(user.tinyllm, "now + (-1) ** call * 40 * 365 * 86400")
    for _ in range(3):
        done = user.tinyllm("run", NEW, environ=jumping)
        assert (done.code, done.out, done.err) == (0, user.new, b"")
    user.healed()


@pytest.mark.slow
def test_s19_with_faketime(user: User) -> None:
    """The same for every clock of the process but the monotonic one."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("no libfaketime on this machine")
    fake = {"LD_PRELOAD": str(library), "FAKETIME": "+400d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    for _ in range(2):
        done = user.tinyllm("run", KNOWN, environ=fake)
        assert (done.code, done.out, done.err) == (0, user.known, b"")
    assert user.ollama.generations == 3
    user.healed(kept=False)


@pytest.mark.parametrize(
    "way", ["removed", *map(later, ["renamed", "replaced by a file", "replaced by another"])]
)
def test_s20_the_directory_goes_during_a_run(user: User, way: str) -> None:
    directory = user.path.parent
    barrier = user.ollama.hold(times=1)
    process = user.tinyllm.start("run", NEW)
    barrier.wait_for(1)
    if way == "removed":
        shutil.rmtree(directory)
    else:
        directory.rename(user.tinyllm.home / "moved")
    if way == "replaced by a file":
        directory.write_text("mine")
    if way == "replaced by another":
        directory.mkdir(mode=0o700)
    barrier.release()
    user.right(finish(process))
    if way == "replaced by a file":
        assert directory.read_text() == "mine"
        directory.unlink()
    user.healed(kept=False)
    assert oct(directory.stat().st_mode & 0o777) == "0o700"


@linux_only
@pytest.mark.parametrize(
    ("what", "limit"),
    [later("NOFILE", 10), ("NOFILE", 8), later("AS", 250 * 2**20), later("NPROC", 1)],
)
def test_s21_limits_of_the_process(user: User, what: str, limit: int) -> None:
    """With what is left the answer comes, or the command says in two lines that it cannot work."""
    kind = getattr(resource, f"RLIMIT_{what}")
    for prompt in (KNOWN, NEW):
        done = finish(
            user.tinyllm.start(
                "run",
                prompt,
                # as users have it: warnings about what Python itself could not finish are hidden
                environ={"PYTHONWARNINGS": ""},
                preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
            )
        )
        assert b"Traceback" not in done.err
        if prompt == KNOWN or done.code == 0:
            user.right(done, prompt=prompt)
        else:
            assert done.code == 3
            assert done.complaint.splitlines()[-2:] == [
                "tinyllm: too many open files",
                "hint: raise the limit of open files: ulimit -n",
            ]
    user.healed()


def test_s22_larger_than_an_entry_may_be(user: User) -> None:
    small = {"TINYLLM_CACHE_MAX_ENTRY_BYTES": "10KiB"}
    # noise, or it would be small again when packed
    noise = random.Random(1).randbytes(20_000).hex()
    user.ollama.answer = lambda body: noise
    for _ in range(2):
        done = user.tinyllm("run", "Something long?", "--max-tokens", "1000000", environ=small)
        assert (done.code, done.err) == (0, b"")
        assert done.out == noise.encode() + b"\n"
    assert user.ollama.generations == 4
    user.ollama.answer = truth
    user.healed()


@slow
def test_s22_fifty_megabytes(user: User) -> None:
    noise = random.Random(1).randbytes(25 * 2**20).hex()
    user.ollama.chunks = [
        *({"response": noise[n : n + 2**16], "done": False} for n in range(0, len(noise), 2**16)),
        {"response": "", "done": True, "done_reason": "stop"},
    ]
    done = user.tinyllm("run", "Something very long?")
    assert (done.code, done.err) == (0, b"")
    assert done.out == noise.encode() + b"\n"
    assert stored(user.path) == 1
    user.ollama.chunks = None
    user.healed()


CANARY = "canary-5f2a9c"


def test_s23_nothing_is_left_of_what_was_cleared(user: User) -> None:
    user.ollama.answer = lambda body: f"The {CANARY} sings."
    for n in range(5):
        assert user.tinyllm("run", f"Where is {CANARY} {n}?").code == 0
    everything = [file.read_bytes() for file in user.path.parent.iterdir()]
    assert any(CANARY.encode() in content for content in everything)
    shutil.copy(user.path, user.path.with_name(f"{user.path.name}.corrupt-1"))
    assert user.tinyllm("cache-clear", "--yes").code == 0
    everything = [file.read_bytes() for file in user.path.parent.rglob("*")]
    assert everything and not any(CANARY.encode() in content for content in everything)
    user.ollama.answer = truth
    user.healed(kept=False)


# --- power loss


class Write:
    """One change of a file as strace saw it; None of `data` is a change of length."""

    def __init__(self, journal: bool, offset: int, data: bytes | None) -> None:
        self.journal = journal
        self.offset = offset
        self.data = data

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
            return
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data


def recorded(user: User) -> list[Write]:
    """Store a new answer and return what was written to the file and its journal, in order."""
    trace = user.tinyllm.home / "trace"
    begin = [tool("strace"), "-f", "-qq", "-xx", "-y", "-s", "100000", "-o", str(trace)]
    begin += ["-P", str(user.path), "-P", f"{user.path}-journal"]
    done = beneath(user, [*begin, "-e", "trace=pwrite64,ftruncate,unlink"], "run", NEW)
    assert (done.code, done.out) == (0, user.new), done
    found = []
    for line in trace.read_text().splitlines():
        if call := re.search(r'pwrite64\(\d+<(.*?)>, "(.*?)", \d+, (\d+)\)', line):
            data = bytes.fromhex(call[2].replace("\\x", ""))
            found.append(Write(unhexed(call[1]).endswith("-journal"), int(call[3]), data))
        elif call := re.search(r"ftruncate\(\d+<(.*?)>, (\d+)\)", line):
            found.append(Write(unhexed(call[1]).endswith("-journal"), int(call[2]), None))
    return found


def unhexed(name: str) -> str:
    return bytes.fromhex(name.replace("\\x", "")).decode() if "\\x" in name else name


@linux_only
@slow
def test_s24_power_loss(user: User, tmp_path: Path) -> None:
    """Any of the writes may have reached the disk, in any order: none is forced there.

    Each image is opened by the library; each answer must be right, and the store must work.
    """
    for n in range(30):
        assert user.tinyllm("run", f"Question {n}?").code == 0
    before = user.path.read_bytes()
    keys = [
        key for (key,) in sqlite3.connect(user.path).execute("SELECT key FROM entries").fetchall()
    ]
    right = InMemoryBackend(snapshot=user.path)
    texts = {key: right.lookup(key) for key in keys}
    right.close_nowait()
    writes = recorded(user)
    assert len(writes) > 5 and any(write.journal for write in writes)
    seed = random.Random(24)
    image = tmp_path / "image" / "snapshot.sqlite3"
    answered = 0
    for _ in range(400):
        end = seed.randrange(1, len(writes) + 1)
        kept = [write for write in writes[:end] if seed.random() < 0.7]
        file, journal = bytearray(before), bytearray()
        for write in kept:
            write.apply(journal if write.journal else file)
        shutil.rmtree(image.parent, ignore_errors=True)
        image.parent.mkdir(mode=0o700)
        image.write_bytes(file)
        image.chmod(0o600)
        if journal:
            image.with_name(f"{image.name}-journal").write_bytes(journal)
        backend = InMemoryBackend(snapshot=image, notice=lambda line: None)
        for key in keys:
            found = backend.lookup(key)
            expected = texts[key]
            assert found is None or (expected and found.response == expected.response)
            answered += found is not None
        backend.set_nowait(key_of("after"), entry("after"))
        assert backend.lookup(key_of("after")) is not None
        backend.close_nowait()
    assert answered > 400 * len(keys) / 2
