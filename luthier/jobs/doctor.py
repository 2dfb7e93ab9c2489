"""`luthier doctor`: what would break or slow a run on this machine, why, and how to mend it.

Exit code 0 when nothing would break a run, 1 otherwise (with --strict also for warnings). What is installed is looked
at first and without torch, so that a doctor whose own libraries are broken can still say which.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from luthier.config.load import load_project
from luthier.errors import ConfigError
from luthier.jobs import console
from luthier.jobs.doctor_packages import extras, library_versions, pins, python_version, start_up_code
from luthier.jobs.finding import Finding

_OWN_PINS = Path(__file__).resolve().parents[2] / "constraints.txt"  # in a checkout; an installed luthier has none


def doctor(
    *, config: Path | None = None, constraints: Path | None = None, strict: bool = False, as_json: bool = False
) -> int:
    """Prints the findings; returns the exit code. config: a project file whose output_dir and device are looked at."""
    if constraints is not None and not constraints.is_file():
        raise ConfigError(f"{constraints}: no such file", hint="give a file of lines such as torch==2.13.0")
    project = load_project(config) if config else None
    output_dir, asked = (project.output_dir, project.spec.train.device) if project else (Path("runs"), "auto")
    findings = [*_installed(constraints), *_machine(output_dir, asked)]
    failing = {"problem", "warning"} if strict else {"problem"}
    wrong = [finding for finding in findings if finding.verdict in failing]
    if as_json:
        told = {"ok": not wrong, "findings": [dataclasses.asdict(finding) for finding in findings]}
        console.console.print(json.dumps(told, indent=1), markup=False, soft_wrap=True)
    else:
        _tell(findings)
    return 1 if wrong else 0


def _installed(constraints: Path | None) -> Iterator[Finding]:
    yield python_version()
    yield from library_versions()
    if constraints or _OWN_PINS.is_file():
        yield from pins(constraints or _OWN_PINS)
    yield from extras()
    yield from start_up_code()


def _machine(output_dir: Path, asked: str) -> Iterator[Finding]:
    try:
        machine = importlib.import_module("luthier.jobs.doctor_machine")
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's that is not there
        why = "without it nothing can be trained, and the machine cannot be looked at"
        yield Finding("import", f"{type(error).__name__}: {error}", "problem", why, "install again what is named")
        return
    yield from machine.examine(output_dir, asked)


def _tell(findings: list[Finding]) -> None:
    console.table("", ("what", "found", "verdict"), [(one.what, one.found, one.verdict) for one in findings])
    for verdict, colour in (("problem", "red"), ("warning", "yellow"), ("note", "")):
        for one in findings:
            if one.verdict == verdict:
                console.line("")
                console.line(f"{verdict}: {one.what}: {one.found}", colour)
                console.line(f"why:  {one.why}")
                console.line(f"mend: {one.mend}")
