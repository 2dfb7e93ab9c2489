"""What the user sees: stage headlines, progress bars, tables and the closing card. On a pipe: plain lines, no
control codes. Secrets are masked (config/secrets.py)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from luthier.config.secrets import redact

# On a pipe nothing is folded to 80 columns: paths must stay whole.
PIPE_WIDTH = 140
console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

PLAIN_EVERY_S = 10.0


def headline(stage: str, text: str) -> None:
    """One line that opens a stage."""
    console.print(Text.assemble((f"{stage:<9}", "bold cyan"), redact(text)))


def line(text: str, style: str = "") -> None:
    """One indented line of detail."""
    console.print(Text(" " * 9 + redact(text), style=style))


def warn(text: str) -> None:
    """One indented warning."""
    line(f"warning: {text}", "yellow")


@contextmanager
def silence() -> Iterator[None]:
    """Inside, nothing is printed (what is asked for is the answer alone)."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def shown(path: Path) -> str:
    """A path as the user would type it: relative where it lies below the current folder, else absolute."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _figures(values: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in values.items())


@contextmanager
def progress_bar(label: str) -> Iterator:
    """Yields a `types.Progress` callback: a live bar on a terminal, a line every ten seconds elsewhere."""
    if not console.is_terminal:
        last = [time.monotonic()]

        def plain(done: int, total: int, /, **figures: float) -> None:
            if time.monotonic() - last[0] >= PLAIN_EVERY_S or (done == total and total > 0):
                last[0] = time.monotonic()
                line(f"{label}: {done}/{total}  {_figures(figures)}".rstrip())

        yield plain
        return
    bar = Progress(
        TextColumn(" " * 8),
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=None, figures="")

        def live(done: int, total: int, /, **figures: float) -> None:
            bar.update(task, completed=done, total=total, figures=_figures(figures))

        yield live


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A small table; numbers are right-aligned."""
    view = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, header in enumerate(headers):
        numeric = index > 0 and all(row[index][:1] in "+-0123456789" for row in rows if row[index])
        # The first column names the row: a name folded in the middle could not be copied.
        view.add_column(header, justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0)
    for row in rows:
        view.add_row(*[Text(redact(cell)) for cell in row])
    console.print(view)


def card(title: str, lines: Sequence[tuple[str, str]], style: str) -> None:
    """The closing summary."""
    width = max(len(name) for name, _ in lines)
    body = Text("\n").join(Text.assemble((f"{name:<{width}}  ", "dim"), redact(value)) for name, value in lines)
    console.print(Panel(body, title=Text(title, style=f"bold {style}"), border_style=style, expand=False))


@contextmanager
def stage_bars() -> Iterator:
    """Yields name -> progress callback: one bar after the other, the earlier one closed when the next begins."""
    with ExitStack() as bars:

        def next_bar(name: str):
            bars.close()
            return bars.enter_context(progress_bar(name))

        yield next_bar
