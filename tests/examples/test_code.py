"""examples/code: rows are what the generator writes, their tests tell right from wrong, no hidden function leaks."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from luthier.data.stored import read_rows
from luthier.graders.sandbox.box import Sandbox
from luthier.text.shingles import Shingled
from luthier.text.similar import exact_pairs

FOLDER = Path(__file__).parents[2] / "examples" / "code"
ROWS = {
    name: [json.loads(line) for line in (FOLDER / f"raw/{name}.jsonl").read_text().splitlines()]
    for name in ("train", "test")
}
EVERY = ROWS["train"] + ROWS["test"]
HIDDEN_ROWS = [row for row in ROWS["test"] if row["slice"] == "hidden"]
SAMPLE = [*ROWS["train"][::90], *ROWS["test"][::29]]


def _library() -> dict[str, ast.FunctionDef]:
    """Every public function of the library by its path."""
    found = {}
    for file in sorted((FOLDER / "lib/atelier").glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[f"{file.stem}.{node.name}"] = node
    return found


LIBRARY = _library()


def called(row: dict) -> set[str]:
    return set(re.findall(r"\b\w+\.\w+(?=\(|\))", row["answer"])) & LIBRARY.keys()


def listed(row: dict) -> set[str]:
    return {line.split("(")[0] for line in row["index"].splitlines()}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(paths=[FOLDER / "lib"]) as opened:
        yield opened


@pytest.mark.slow
def test_the_generator_writes_the_same_bytes_again(tmp_path):
    subprocess.run([sys.executable, FOLDER / "generate.py", tmp_path], check=True)
    for name in ROWS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"raw/{name}.jsonl").read_bytes()


def test_the_library_is_large_typed_and_documented():
    assert len(LIBRARY) >= 120
    for path, node in LIBRARY.items():
        typed = node.returns is not None and all(argument.annotation for argument in node.args.args)
        assert typed and ast.get_docstring(node), path


def test_hidden_functions_occur_in_test_rows_only():
    seen = set.union(*(called(row) | listed(row) for row in ROWS["train"]))
    hidden = LIBRARY.keys() - seen - {"calendar_days.days_between", "calendar_days.shifted"}
    assert len(hidden) >= 20 and len(HIDDEN_ROWS) >= 60
    needed = Counter(path for row in ROWS["test"] for path in called(row) & hidden)
    assert needed.keys() == hidden
    assert all(bool(called(row) & hidden) == (row["slice"] == "hidden") for row in ROWS["test"])
    trained = {row["calls"] for row in ROWS["train"]}
    assert not trained & {row["calls"] for row in ROWS["test"]}
    used = set.union(*(called(row) for row in ROWS["train"]))
    assert all(called(row) <= used for row in ROWS["test"] if row["slice"] == "seen")


def test_a_question_lists_what_its_answer_needs_and_more():
    for row in EVERY:
        assert called(row) == set(row["calls"].split()) < listed(row), row


def test_inputs_are_varied():
    """Near-duplicates by word 3-grams of the input, numbers masked."""
    texts = [re.sub(r"\d[\d.,-]*", "0", f"{row['index']}\n{row['ask']}") for row in EVERY]
    pairs = exact_pairs(Shingled(texts), range(len(texts)), 0.5)
    assert len({*pairs.i.tolist(), *pairs.j.tolist()}) <= 0.1 * len(texts)


@pytest.mark.slow
def test_all_rows_are_kept(luthier, tiny_base, tmp_path):
    tokens = ("train.sequence_len=4096", "train.micro_batch_tokens=4096")  # the tiny tokenizer needs more of them
    changes = (f"output_dir={tmp_path}", f"model.base={tiny_base}", *tokens)
    result = luthier("prepare", "-c", FOLDER / "luthier.yaml", *(word for each in changes for word in ("--set", each)))
    assert result.exit_code == 0, (result.output, result.exception)
    folder = next(tmp_path.glob("prepare-*"))
    kept = {name: len(read_rows(folder, name)) for name in ("train", "dev", "test")}
    assert kept["train"] >= 600 and kept["dev"] >= 72 and kept["test"] >= 200
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows_read"] == sum(kept.values()) + summary["rows_quarantined"] == len(EVERY)
    assert summary["quarantined"].keys() == {"quotes an evaluation item"}


def with_a_call_swapped(row: dict) -> str | None:
    """The answer with one call replaced by another line of the question's index that takes and gives the same."""
    shapes = {line.split("(")[0]: line.split("(")[1] for line in row["index"].splitlines()}
    for right in row["calls"].split():
        for wrong, shape in shapes.items():
            if wrong not in row["calls"].split() and shape == shapes[right]:
                return re.sub(rf"\b{re.escape(right)}\b", wrong, row["answer"])
    return None


def judge(sandbox, rows: list[dict]) -> int:
    """Asserts that answers pass and swapped ones fail; returns how many could be swapped."""
    swapped = 0
    for row in rows:
        assert sandbox.run(row["answer"], row["tests"]).passed, row
        assert not sandbox.run("", row["tests"]).passed, row
        wrong = with_a_call_swapped(row)
        if wrong is not None:
            swapped += 1
            assert not sandbox.run(wrong, row["tests"]).passed, (wrong, row)
    return swapped


def test_answers_pass_their_tests_and_swapped_calls_fail(sandbox):
    assert judge(sandbox, SAMPLE) >= len(SAMPLE) // 3


@pytest.mark.slow
def test_every_answer_passes_its_tests_and_every_swapped_call_fails(sandbox):
    assert judge(sandbox, EVERY) >= len(EVERY) // 3


TAMPERED = {
    "the library's function": "import atelier.wood\natelier.wood.mass_kg = lambda board: 8.905",
    "the library's examples": "import atelier.demo\natelier.demo.BOARDS[0]['length_mm'] = 0",
    "the library's place": "import sys, types\nsys.modules['atelier'] = types.ModuleType('atelier')",
    "the library's file": "import atelier.wood\nopen(atelier.wood.__file__, 'a').write('mass_kg = abs')",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_an_answer_that_tampers_with_the_library_changes_it_for_itself_alone(sandbox, what):
    tests = (
        "from atelier import wood\nfrom atelier.demo import BOARDS\n"
        "assert f(BOARDS[0]) == wood.mass_kg(BOARDS[0]) == 8.905"
    )
    honest = "from atelier import wood\ndef f(board): return wood.mass_kg(board)"
    assert sandbox.run(honest, tests).passed
    cheat = f"try:\n    {'    '.join(TAMPERED[what].splitlines(True))}\nexcept OSError: pass\ndef f(board): return 0.0"
    assert not sandbox.run(cheat, tests).passed
    assert sandbox.run(honest, tests).passed
