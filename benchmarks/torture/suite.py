"""The rows of the scoreboard that tests show: which tests, run how, and how many passed.

A row passes when every one of its tests does. Rows that nothing here can show say why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SuiteRow:
    """what: as the table tells it; tests: pytest's arguments."""

    what: str
    tests: tuple[str, ...]


SUITE = {
    "R3": SuiteRow(
        "exact resume: 9 settings cut at 6 places; weights, moments, generators, counters, log, bit for bit",
        ("tests/engine/test_exact_resume.py::test_the_end_is_that_of_the_uninterrupted_run",),
    ),
    "R4": SuiteRow(
        "ledger: killed after every other step of four epochs; each row once an epoch, in the same order",
        (
            "tests/engine/test_exact_resume.py::test_a_row_is_used_once_an_epoch_over_many_kills",
            "tests/engine/test_resume.py::test_many_stops_use_each_row_once_an_epoch_and_log_no_step_twice",
        ),
    ),
    "R7 CLI": SuiteRow(
        "SIGTERM in 8 phases of `luthier train` itself, from its imports to after its last step",
        ("tests/jobs/test_stops.py", "-k", "sigterm"),
    ),
    "R10": SuiteRow(
        "micro-batches, partial windows and the divisor, for every loss",
        ("tests/engine/test_step.py", "tests/losses/test_every_loss.py", "-k", "micro or window or divisor or split"),
    ),
    "R11": SuiteRow(
        "padding, packing and batch size move no loss, logit or dev figure",
        (
            "tests/engine/test_loop.py::test_dev_loss_does_not_depend_on_the_batches",
            "tests/models/test_decoder.py",
            "tests/chat/test_loss_equivalence.py",
        ),
    ),
    "R12": SuiteRow("the loss mask, by template family and with planted defects", ("tests/chat/test_proof.py",)),
    "R13": SuiteRow(
        "token ids of training, of transformers' template and of the exported file are one",
        (
            "tests/chat/test_families.py",
            "tests/ship/test_gguf.py",
            "tests/ship/test_modelfile.py",
            "-k",
            "ids_equal or same_tokenizer or family_is_found",
        ),
    ),
    "R14": SuiteRow(
        "adapters saved, loaded, merged, read by PEFT; missing tensors are errors",
        (
            "tests/adapters/test_methods.py",
            "tests/adapters/test_peft_files.py",
            "-k",
            "saved or merged or peft or missing",
        ),
    ),
    "R15": SuiteRow(
        "DPO starts at ln 2; an adapter switched off is the base bit for bit",
        ("tests/losses/test_preference.py", "tests/adapters/test_methods.py", "-k", "ln_2 or switched_off"),
    ),
    "R16": SuiteRow(
        "every trainable tensor moves and nothing else; the rate equals its closed form",
        (
            "tests/engine/test_schedule.py",
            "tests/engine/test_step.py",
            "tests/adapters/test_methods.py",
            "-k",
            "rate or shape or every_adapter or moves",
        ),
    ),
    "R17 tests": SuiteRow(
        "numbers that are not finite, in data, loss, gradient, activation: no weight moves, the rows are named",
        ("tests/engine/test_step.py", "tests/engine/test_numerics.py", "-k", "finite or blamed"),
    ),
    "R18": SuiteRow("spikes refused by name, none in 1,000 clean steps", ("tests/engine/test_numerics.py",)),
    "R19": SuiteRow("out of memory in forward, backward, dev and rehearsal", ("tests/engine/test_memory.py",)),
    "R20": SuiteRow(
        "a hang ends the process with its stacks; a tracker that fails does not end a run",
        ("tests/engine/test_watchdog.py", "tests/engine/test_trackers.py"),
    ),
    "R21": SuiteRow(
        "hostile data: refused or set aside by file and line, read = kept + set aside",
        ("tests/data/test_bad_input.py",),
    ),
    "R22": SuiteRow("config: unknown keys, types, secrets, each with its place", ("tests/config",)),
    "R23": SuiteRow(
        "four processes share a cache and one is killed: converted base, prepared data, compiled loops",
        (
            "tests/bases/test_resolve.py",
            "tests/data/test_bad_input.py",
            "tests/kernels/test_jit.py",
            "-k",
            "four_processes",
        ),
    ),
    "R26": SuiteRow(
        "malicious pickles, safetensors, templates, indexes and code beside a base",
        (
            "tests/store/test_pickles.py",
            "tests/store/test_safetensors_file.py",
            "tests/jobs/test_hostile_files.py",
            "tests/test_supply_chain.py",
        ),
    ),
    "R28": SuiteRow("planted tokens are in no file, no output, no process argument", ("tests/jobs/test_secrets.py",)),
}
NOT_HERE = {
    "R8": ("a rank killed or stopped", "not applicable: one process trains"),
    "R9": ("other world sizes", "not applicable: one process trains"),
    "R24": ("many adapters behind a server", "not applicable: nothing is served"),
    "R25": ("abuse of a server", "not applicable: nothing is served"),
    "R27": ("web routes", "not applicable: nothing is served"),
}


def run_suite(row: str) -> dict:
    """Runs the tests of a row, slow ones too; how many there were, passed and were skipped."""
    # The shim that is preloaded here is for trials, not for tests that limit files themselves.
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *SUITE[row].tests]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        counts = ElementTree.parse(report).getroot().find("testsuite").attrib
    if done.returncode:
        print(done.stdout[-2000:], flush=True)
    skipped, bad = int(counts["skipped"]), int(counts["failures"]) + int(counts["errors"])
    trials = int(counts["tests"]) - skipped
    return {"trials": trials, "PASS": trials - bad, "failed": bad, "skipped": skipped}
