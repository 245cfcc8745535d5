"""Progress for people: live bars on a terminal, one line per interval elsewhere. All on stderr."""

import sys
import time
from typing import Any, Protocol, TextIO

INTERVAL = 15.0  # s between lines where there is no terminal


class Display(Protocol):
    """What a run tells while it runs."""

    def start(self, number: int, total: int, title: str) -> None:
        """Stage `number` of `total` begins."""
        ...

    def progress(self, done: float, total: float, note: str = "") -> None:
        """The current stage has done `done` of `total`."""
        ...

    def finish(self, note: str, seconds: float) -> None:
        """The current stage is done."""
        ...

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        """A stage that an earlier run finished."""
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
        self._line(f"[{number}/{total}] {title} ...")

    def progress(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self.interval:
            self._last = now
            share = f" {done:.0f}/{total:.0f}" if total else ""
            self._line(f"      {self._title.lower()}{share}{', ' + note if note else ''}")

    def finish(self, note: str, seconds: float) -> None:
        self._line(f"      {note} ({seconds:.1f} s)")

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        self._line(f"[{number}/{total}] {title}: done before, {note}")

    def close(self) -> None:
        pass

    def _line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


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
        self._bar.console.print(f"[green]✓[/] {_plain(self._head)}: {_plain(note)} [dim]({seconds:.1f} s)")

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        self._bar.console.print(
            f"[dim]✓ {_plain(f'[{number}/{total}] {title}')}: done before, {_plain(note)}"
        )

    def close(self) -> None:
        self._remove()
        self._bar.stop()

    def _remove(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def choose_display() -> Display:
    """Bars on a terminal, lines elsewhere."""
    return RichDisplay() if sys.stderr.isatty() else LineDisplay()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
