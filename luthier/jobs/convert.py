"""`luthier convert SRC DST`: one file of rows into another format, container or both."""

from __future__ import annotations

import os
from pathlib import Path

from luthier.data.convert import convert as convert_rows
from luthier.errors import ConfigError
from luthier.jobs import console


def convert(source: Path, target: Path, *, to: str, source_format: str, force: bool) -> None:
    """The verb: converts and says what happened to the rows. Raises ConfigError when `target` stands already."""
    if os.path.realpath(target) == os.path.realpath(source):
        raise ConfigError(f"{target}: is the source itself, which would be lost", hint="give the result another name")
    if target.exists() and not force:
        raise ConfigError(f"{target}: exists already", hint="--force replaces it")
    done = convert_rows(source, target, to=to, source_format=source_format)
    console.line(f"{source}: {done.source}")
    console.line(f"{target}: {done.target}")
    num_aside = len(done.quarantine.entries)
    console.line(f"{done.rows_read:,} rows read = {done.rows_written:,} written + {num_aside:,} quarantined")
    for warning in done.warnings:
        console.warn(warning)
    for name, count in done.changes.items():
        console.warn(f"{name}: {count:,}")
    for reason, count in done.quarantine.by_reason().items():
        console.warn(f"set aside in {target.name}.quarantine.jsonl: {reason}: {count:,}")
