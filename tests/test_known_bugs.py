"""docs/known_bugs.md and the tests marked `known_bug` name each other: no id without a test, no test without a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_TEST = "does not apply: "
ROW = re.compile(r"^\| ([A-Z]{2}\d?) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")


def table_rows() -> list[tuple[str, str, str, str]]:
    """(id, bug, reference, what catches it) of every row."""
    lines = (ROOT / "docs/known_bugs.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith(("|---", "| id "))]
    found = [ROW.match(line) for line in rows]
    assert all(found), [line for line, match in zip(rows, found, strict=True) if not match]
    cells = [[cell.strip() for cell in match.groups()] for match in found if match]
    return [(id_, bug, reference, caught) for id_, bug, reference, caught in cells]


def marked_tests() -> set[tuple[str, str]]:
    """(id, path::name) of every `@pytest.mark.known_bug("...")` under tests/."""
    marked = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.known_bug":
                    assert mark.args, f"{path}:{mark.lineno}: no id"
                    where = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    marked |= {(ast.literal_eval(arg), where) for arg in mark.args}
    return marked


def test_the_table_and_the_marked_tests_are_the_same():
    told = {(id_, test) for id_, _, _, caught in table_rows() for test in re.findall(r"`(tests/[^`]+)`", caught)}
    assert told == marked_tests()


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: f"{row[0]}: {row[1][:40]}")
def test_every_row_has_a_test_or_a_reason(row):
    _, bug, reference, caught = row
    assert bug and reference
    assert ("`tests/" in caught) != caught.startswith(NO_TEST)
    assert len(caught) > len(NO_TEST) + 10
