"""How things look on a terminal; the only file that imports rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from ..ollama.client import PullProgress
from .terminal import inert

__all__ = [
    "finding_printer",
    "key_progress",
    "pull_progress",
    "spinner",
    "table_printer",
    "write_thinking",
]


def _console(*, stderr: bool) -> Console:
    # model names and server texts are data: no markup, no emoji, nothing highlighted
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show a spinner with a text on standard error; nothing on a dumb terminal."""
    console = _console(stderr=True)
    if console.is_dumb_terminal:
        yield
        return
    with console.status(Text(inert(text), style="dim"), spinner="dots"):
        yield


@contextmanager
def pull_progress(model: str) -> Iterator[Callable[[PullProgress], None]]:
    """Give a function that shows a pull's progress as a bar on standard error."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task(inert(f"pulling {model}"), total=None)
        layer: list[str | None] = [None]

        def show(step: PullProgress) -> None:
            if step.digest != layer[0]:
                layer[0] = step.digest
                progress.reset(task, total=step.total)
            progress.update(
                task,
                description=inert(step.status)[:40],
                total=step.total,
                completed=step.completed or 0,
            )

        yield show


@contextmanager
def key_progress(verb: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function that shows how many of a server's keys were looked through."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        task = progress.add_task(verb, total=None)

        def show(seen: int, total: int | None) -> None:
            progress.update(task, total=total, completed=seen)

        yield show


def finding_printer() -> Callable[[str, str, str], None]:
    """Return a function that prints a state, what it is of and what was found, one line each."""
    console = _console(stderr=False)
    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}

    def show(state: str, name: str, text: str) -> None:
        line = Text(f"{state:<8}", style=styles.get(state, "dim"))
        line.append(inert(f" {name:<9} {text}").replace("\n", " "), style="default")
        console.print(line, soft_wrap=True)
        sys.stdout.flush()

    return show


def write_thinking(text: str) -> None:
    """Write a piece of a model's thinking to standard error, dimmed."""
    _console(stderr=True).print(Text(inert(text), style="dim"), end="", soft_wrap=True)


def table_printer() -> Callable[[str, list[str], list[list[str]]], None]:
    """Return a function that prints a titled table to standard output, first column left."""
    console = _console(stderr=False)

    def show(title: str, headers: list[str], rows: list[list[str]]) -> None:
        table = Table(title=Text(title), title_justify="left", show_header=any(headers))
        for number, header in enumerate(headers):
            table.add_column(header, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(inert(cell)) for cell in row))
        console.print(table)
        sys.stdout.flush()

    return show
