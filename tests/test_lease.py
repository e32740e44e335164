"""Do processes that share a store take turns, and does nobody wait for the dead or for a broken store?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Clock
from tests.running import in_loop
from tests.samples import entry, key_of
from tinyllm_cli.backends.base import LeaseStore
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import SnapshotError
from tinyllm_cli.lease import GAVE_UP, LEASE_S, Turn, take_turn

KEY = key_of("one")
ENTRY = entry()


class Leases:
    """A lease store in memory. `on_ask` runs before each claim, as other processes would."""

    keeps_leases = True

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, int, str]] = {}
        self.asked: list[str | None] = []
        self.beats = asyncio.Event()
        self.broken: set[str] = set()
        self.on_ask: Callable[[int], None] = lambda number: None
        self.slowly: asyncio.Event | None = None

    def hold(self, token: str, beats: int = 0, note: str = "") -> None:
        self.rows[KEY] = (token, beats, note)

    def _may_fail(self, name: str) -> None:
        if name in self.broken:
            raise SnapshotError(f"{name} is broken")

    async def lease(self, key: str, token: str, stale: str | None) -> str | None:
        self.on_ask(len(self.asked))
        self.asked.append(stale)
        self._may_fail("lease")
        if self.slowly is not None:
            await self.slowly.wait()
        row = self.rows.get(key)
        mark = None if row is None else f"{row[0]} {row[1]} {row[2]}"
        if mark not in (None, stale):
            return mark
        self.rows[key] = (token, 0, "")
        return None

    async def beat(self, key: str, token: str) -> None:
        self.beats.set()
        self._may_fail("beat")
        if key in self.rows and self.rows[key][0] == token:
            self.rows[key] = (token, self.rows[key][1] + 1, "")

    async def release(self, key: str, token: str, note: str) -> None:
        self._may_fail("release")
        if key in self.rows and self.rows[key][0] == token:
            if note:
                self.rows[key] = (token, self.rows[key][1], note)
            else:
                del self.rows[key]


class Shelf:
    """Where the answer appears: `look` gives it from the nth look on.

    `on_look` runs at each, between one claim and the next.
    """

    def __init__(self, appears_at: int | None = None) -> None:
        self.looks = 0
        self.appears_at = appears_at
        self.on_look: Callable[[int], None] = lambda number: None

    async def look(self) -> CacheEntry | None:
        self.looks += 1
        self.on_look(self.looks)
        there = self.appears_at is not None and self.looks >= self.appears_at
        return ENTRY if there else None


def test_what_the_tests_use_is_a_lease_store() -> None:
    assert isinstance(asyncio.run(_made()), LeaseStore)


async def _made() -> Leases:
    return Leases()


# --- whose turn it is


@in_loop
async def test_without_a_store_it_is_always_ones_turn() -> None:
    shelf = Shelf()
    async with take_turn(None, KEY, shelf.look) as turn:
        assert (turn.entry, shelf.looks) == (None, 0)


@in_loop
async def test_a_free_lease_is_taken_and_given_back() -> None:
    leases, shelf = Leases(), Shelf()
    async with take_turn(leases, KEY, shelf.look) as turn:
        assert turn.entry is None
        assert KEY in leases.rows
    assert leases.rows == {}
    assert shelf.looks == 1


@in_loop
async def test_an_answer_stored_before_the_lease_was_free_is_found() -> None:
    """Between a request's look-up and its claim another process may have begun and finished."""
    leases, shelf = Leases(), Shelf(appears_at=1)
    async with take_turn(leases, KEY, shelf.look) as turn:
        assert turn.entry is ENTRY
    assert leases.rows == {}


@in_loop
async def test_who_waits_gets_the_holders_answer_and_never_the_lease() -> None:
    leases, shelf = Leases(), Shelf(appears_at=4)
    leases.hold("another")
    async with take_turn(leases, KEY, shelf.look) as turn:
        assert turn.entry is ENTRY
    assert leases.asked == [None] * 4
    assert leases.rows[KEY][0] == "another"


@in_loop
async def test_a_living_holder_is_waited_for_without_limit() -> None:
    clock = Clock()
    leases, shelf = Leases(), Shelf(appears_at=8)

    def a_long_second(number: int) -> None:
        clock.advance(LEASE_S - 0.001)
        leases.hold("another", beats=number)

    leases.on_ask = a_long_second
    async with take_turn(leases, KEY, shelf.look, clock=clock) as turn:
        assert turn.entry is ENTRY
    assert leases.asked == [None] * 8


@pytest.mark.parametrize(("stood_still", "taken"), [(LEASE_S - 0.001, False), (LEASE_S, True)])
@in_loop
async def test_a_mark_that_stands_still_is_taken_over_at_the_lease_end(
    stood_still: float, taken: bool
) -> None:
    clock = Clock(0)
    leases, shelf = Leases(), Shelf(appears_at=None if taken else 2)
    leases.hold("the dead", beats=7)

    shelf.on_look = lambda number: clock.advance(stood_still)
    async with take_turn(leases, KEY, shelf.look, clock=clock) as turn:
        assert (turn.entry is None) is taken
        assert (leases.rows[KEY][0] != "the dead") is taken
    assert leases.asked == [None, "the dead 7 " if taken else None]


@in_loop
async def test_each_beat_starts_the_time_anew() -> None:
    clock = Clock(0)
    leases, shelf = Leases(), Shelf()
    leases.hold("slow")

    def on_look(number: int) -> None:
        clock.advance(LEASE_S - 1)
        if number < 3:
            leases.hold("slow", beats=number)

    shelf.on_look = on_look
    async with take_turn(leases, KEY, shelf.look, clock=clock):
        pass
    # two beats of the holder, and the last mark stood still for twice two seconds
    assert leases.asked == [None, None, None, None, "slow 2 "]


@in_loop
async def test_when_two_wait_for_the_dead_one_takes_over_and_the_other_waits_on() -> None:
    clock = Clock(0)
    leases, shelf = Leases(), Shelf(appears_at=4)
    leases.hold("the dead")

    def on_ask(number: int) -> None:
        if number == 1:
            leases.hold("the quicker one")

    shelf.on_look = lambda number: clock.advance(LEASE_S if number == 1 else 0)
    leases.on_ask = on_ask
    async with take_turn(leases, KEY, shelf.look, clock=clock) as turn:
        assert turn.entry is ENTRY
    assert leases.asked == [None, "the dead 0 ", None, None]


# --- how a turn ends


@pytest.mark.parametrize(("stored", "left"), [(True, None), (None, None), (False, GAVE_UP)])
@in_loop
async def test_a_turn_leaves_a_note_only_if_waiting_makes_no_sense(
    stored: bool | None, left: str | None
) -> None:
    leases = Leases()
    async with take_turn(leases, KEY, Shelf().look) as turn:
        turn.stored = stored
    assert (leases.rows[KEY][2] if leases.rows else None) == left


@in_loop
async def test_who_waits_when_the_holder_gives_up_tries_alone_and_at_once() -> None:
    """In a queue, each would wait for the failures of all before it."""
    clock = Clock(0)
    leases, shelf = Leases(), Shelf()
    leases.hold("another")

    def on_ask(number: int) -> None:
        if number == 2:
            leases.hold("another", note=GAVE_UP)

    leases.on_ask = on_ask
    async with take_turn(leases, KEY, shelf.look, clock=clock) as turn:
        assert turn.entry is None
        assert leases.rows[KEY][0] == "another"
    assert leases.rows[KEY] == ("another", 0, GAVE_UP)


@in_loop
async def test_a_note_from_before_is_taken_over_at_once() -> None:
    leases, shelf = Leases(), Shelf()
    leases.hold("long ago", note=GAVE_UP)
    async with take_turn(leases, KEY, shelf.look, clock=Clock(0)) as turn:
        assert turn.entry is None
        assert leases.rows[KEY][0] != "long ago"
    assert leases.rows == {}
    assert leases.asked == [None, f"long ago 0 {GAVE_UP}"]


@in_loop
async def test_a_note_from_before_that_another_takes_over_makes_one_wait_for_it() -> None:
    leases, shelf = Leases(), Shelf(appears_at=2)
    leases.hold("long ago", note=GAVE_UP)

    def on_ask(number: int) -> None:
        if number == 1:
            leases.hold("the quicker one")

    leases.on_ask = on_ask
    async with take_turn(leases, KEY, shelf.look, clock=Clock(0)) as turn:
        assert turn.entry is ENTRY
    assert leases.rows[KEY][0] == "the quicker one"


@in_loop
async def test_a_turn_that_breaks_off_lets_the_next_one_in() -> None:
    leases = Leases()
    with pytest.raises(LookupError):
        async with take_turn(leases, KEY, Shelf().look):
            raise LookupError
    assert leases.rows == {}


# --- leaving


async def _hold(leases: Leases, entered: asyncio.Event, shelf: Shelf | None = None) -> None:
    async with take_turn(leases, KEY, (shelf or Shelf()).look):
        entered.set()
        await asyncio.Event().wait()


@in_loop
async def test_a_holder_that_is_cancelled_gives_the_lease_back() -> None:
    leases, entered = Leases(), asyncio.Event()
    task = asyncio.create_task(_hold(leases, entered))
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert leases.rows == {}


@in_loop
async def test_a_waiter_that_is_cancelled_leaves_the_holder_alone() -> None:
    leases, asked = Leases(), asyncio.Event()
    leases.hold("another")
    leases.on_ask = lambda number: asked.set()
    task = asyncio.create_task(_hold(leases, asyncio.Event()))
    await asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert leases.rows == {KEY: ("another", 0, "")}


@in_loop
async def test_who_is_cancelled_while_the_lease_is_being_given_does_not_keep_it() -> None:
    """The store is a thread or a server away: it cannot be stopped, and its answer comes later."""
    leases, asked, entered = Leases(), asyncio.Event(), asyncio.Event()
    leases.slowly = asyncio.Event()
    leases.on_ask = lambda number: asked.set()
    task = asyncio.create_task(_hold(leases, entered))
    await asked.wait()
    task.cancel()
    await asyncio.sleep(0)
    leases.slowly.set()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert leases.rows == {}
    assert not entered.is_set()


# --- a store that fails


@pytest.mark.parametrize("broken", [{"lease"}, {"release"}, {"lease", "release", "beat"}])
@in_loop
async def test_with_a_broken_store_it_is_always_ones_turn(broken: set[str]) -> None:
    leases = Leases()
    leases.broken = broken
    async with take_turn(leases, KEY, Shelf().look) as turn:
        assert turn.entry is None
        turn.stored = True


@in_loop
async def test_a_store_that_breaks_while_one_waits_ends_the_waiting() -> None:
    leases, shelf = Leases(), Shelf()
    leases.hold("another")

    def on_ask(number: int) -> None:
        if number == 2:
            leases.broken = {"lease"}

    leases.on_ask = on_ask
    async with take_turn(leases, KEY, shelf.look) as turn:
        assert turn.entry is None
    assert leases.rows[KEY][0] == "another"


@in_loop
async def test_a_look_that_fails_costs_nobody_the_lease() -> None:
    leases = Leases()

    async def look() -> CacheEntry | None:
        raise SnapshotError("the disk is gone")

    async with take_turn(leases, KEY, look) as turn:
        assert turn.entry is None
        assert KEY in leases.rows
    assert leases.rows == {}


# --- beating


@pytest.mark.slow
@pytest.mark.parametrize("broken", [set(), {"beat"}])
@in_loop
async def test_a_holder_changes_its_mark_while_it_works(broken: set[str]) -> None:
    leases = Leases()
    async with take_turn(leases, KEY, Shelf().look):
        leases.broken = broken
        async with asyncio.timeout(10):
            await leases.beats.wait()
        assert leases.rows[KEY][1] == (0 if broken else 1)
    assert leases.rows == {}


# --- the real store


@pytest.fixture
def two(tmp_path: Path) -> tuple[InMemoryBackend, InMemoryBackend]:
    """Give two stores over one file, as two processes have them."""
    path = tmp_path / "cache" / "snapshot.sqlite3"
    return InMemoryBackend(snapshot=path), InMemoryBackend(snapshot=path)


async def _look(backend: InMemoryBackend) -> CacheEntry | None:
    return backend.lookup(KEY)


@in_loop
async def test_two_processes_agree_through_the_snapshot(
    two: tuple[InMemoryBackend, InMemoryBackend],
) -> None:
    one, other = two
    waited: list[Turn] = []

    async def wait() -> None:
        async with take_turn(other, KEY, lambda: _look(other)) as turn:
            waited.append(turn)

    async with take_turn(one, KEY, lambda: _look(one)) as turn:
        waiter = asyncio.create_task(wait())
        await one.set(KEY, ENTRY)
        turn.stored = True
    await waiter
    assert waited[0].entry is not None
    assert waited[0].entry.response == ENTRY.response
    for backend in two:
        await backend.close()


@in_loop
async def test_the_late_return_of_a_dead_holder_does_no_harm(
    two: tuple[InMemoryBackend, InMemoryBackend],
) -> None:
    one, other = two
    assert await one.lease(KEY, "stopped", None) is None
    clock = Clock(0)

    async def look() -> CacheEntry | None:
        clock.advance(LEASE_S)
        return await _look(other)

    async with take_turn(other, KEY, look, clock=clock) as turn:
        assert turn.entry is None
        mark = await one.lease(KEY, "a third", None)
        assert mark is not None and not mark.startswith("stopped")
        # it wakes up, finishes and tidies away: its own lease, of which there is none any more
        await one.beat(KEY, "stopped")
        await one.release(KEY, "stopped", GAVE_UP)
        assert await one.lease(KEY, "a third", None) == mark
    assert await one.lease(KEY, "a third", None) is None
    for backend in two:
        await backend.close()


@in_loop
async def test_a_snapshot_that_cannot_be_written_holds_up_nobody(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    backend = InMemoryBackend(snapshot=blocked / "snapshot.sqlite3")
    async with take_turn(backend, KEY, Shelf().look) as turn:
        assert turn.entry is None
