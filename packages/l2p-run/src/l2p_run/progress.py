"""Progress for people, on stderr: a live line or bar on a terminal, one line per interval elsewhere.

Whoever watches may go away: a closed or full stderr never ends the work that is reported.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

INTERVAL = 15.0  # s between lines where there is no terminal
Progress = Callable[[float, float, str], None]
"""Called with (done, total, note)."""


def say(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print for people; a reader who is gone is no error."""
    with suppress(OSError, ValueError):  # ValueError: the stream was closed
        print(text, file=stream or sys.stderr, flush=True, end=end)


def is_terminal(stream: TextIO | None = None) -> bool:
    """Return whether people watch a stream live."""
    try:
        return (stream or sys.stderr).isatty()
    except (OSError, ValueError, AttributeError):
        return False


def clock(seconds: float) -> str:
    """Return a duration for people: "42 s", "3:05 min", "2:10 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


class Counter:
    """One task: `counter(done, total, note)` shows "what done/total, note, time left".

    On a terminal the line overwrites itself; elsewhere there is one per interval, and the last. Also usable
    as a context, which ends the line.
    """

    def __init__(
        self, what: str = "", *, stream: TextIO | None = None, interval: float = INTERVAL, left: bool = True
    ) -> None:
        self.what, self.interval, self.left = what, interval, left
        self.stream = stream or sys.stderr
        self.live = is_terminal(self.stream)
        self._started = self._last = time.monotonic()
        self._open, self._what = False, what

    def __call__(self, done: float, total: float, note: str = "", *, what: str | None = None) -> None:
        """Tell how far the task is. `what` replaces the name of the task; a new name starts its own clock."""
        now, name = time.monotonic(), self.what if what is None else what
        if name != self._what:
            self._what, self._started = name, now
        share = f"{done:,.0f}/{total:,.0f}" if total else f"{done:,.0f}"
        parts = [" ".join(part for part in (name, share) if part), *([note] if note else [])]
        if self.left and 0 < done < total and now - self._started > 1:
            parts.append(f"{clock((now - self._started) / done * (total - done))} left")
        self._show(", ".join(parts), now, final=bool(total) and done >= total)

    def note(self, text: str) -> None:
        """Show what changes often, as a line that the next one replaces."""
        self._show(text, time.monotonic(), final=False)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        say(("\r\033[K" if self._open else "") + text, self.stream)
        self._open = False

    def close(self) -> None:
        """End the line; also after a failure."""
        if self._open:
            say("", self.stream)
            self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, text: str, now: float, final: bool) -> None:
        if self.live:
            say(f"\r\033[K{text}", self.stream, end="\n" if final else "")
            self._open = not final
        elif final or now - self._last >= self.interval:
            self._last = now
            say(text, self.stream)


class Display(Protocol):
    """What a run of several stages tells while it runs."""

    def start(self, number: int, total: int, title: str) -> None:
        """Stage `number` of `total` begins."""
        ...

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Show that the current stage has done `done` of `total`."""
        ...

    def finish(self, note: str, seconds: float) -> None:
        """Show that the current stage is done."""
        ...

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        """Show a stage that an earlier run finished."""
        ...

    def close(self) -> None:
        """Nothing more will be shown; also after a failure."""
        ...


class LineDisplay:
    """Plain lines, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, interval: float = INTERVAL) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval
        self._title, self._last = "", 0.0

    def start(self, number: int, total: int, title: str) -> None:
        self._title, self._last = title, time.monotonic()
        say(f"[{number}/{total}] {title} ...", self.stream)

    def progress(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self.interval:
            self._last = now
            share = f" {done:.0f}/{total:.0f}" if total else ""
            say(f"      {self._title.lower()}{share}{', ' + note if note else ''}", self.stream)

    def finish(self, note: str, seconds: float) -> None:
        say(f"      {note} ({seconds:.1f} s)", self.stream)

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        say(f"[{number}/{total}] {title}: done before, {note}", self.stream)

    def close(self) -> None:
        pass


class RichDisplay:
    """A live bar for the current stage above the lines of the finished ones."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[share]}"),
            TextColumn("[dim]{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task: Any = None
        self._head = ""
        self._bar.start()

    def start(self, number: int, total: int, title: str) -> None:
        self._head = f"[{number}/{total}] {title}"
        self._task = self._bar.add_task(f"[bold]{_plain(self._head)}", total=None, share="", note="")

    def progress(self, done: float, total: float, note: str = "") -> None:
        if self._task is not None:
            share = f"{done:.0f}/{total:.0f}" if total else ""
            self._bar.update(self._task, completed=done, total=total or None, share=share, note=_plain(note))

    def finish(self, note: str, seconds: float) -> None:
        self._remove()
        self._print(f"[green]✓[/] {_plain(self._head)}: {_plain(note)} [dim]({seconds:.1f} s)")

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        self._print(f"[dim]✓ {_plain(f'[{number}/{total}] {title}')}: done before, {_plain(note)}")

    def close(self) -> None:
        self._remove()
        with suppress(OSError):  # the terminal is gone
            self._bar.stop()

    def _print(self, text: str) -> None:
        with suppress(OSError):
            self.console.print(text)

    def _remove(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def choose_display() -> Display:
    """Bars on a terminal, lines elsewhere."""
    return RichDisplay() if is_terminal() else LineDisplay()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
