"""Every project file that ships with luthier loads, and the demo's files are what the demo promises."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from luthier.config.load import load_project

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("examples/*/luthier.yaml")])


@pytest.mark.parametrize("path", PROJECTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_project_files_load(path, monkeypatch):
    monkeypatch.setenv("LUTHIER_ROWS", "/rows")
    spec = load_project(path).spec
    assert spec.goal.target_behaviour and spec.goal.owner and spec.goal.rollback_plan


def test_the_demo_schema_and_system_message_name_the_same_fields():
    spec = load_project(ROOT / "examples/support/luthier.yaml").spec
    schema = json.loads((ROOT / "examples/support/answer.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    lines = dict(line.split(": ") for line in spec.data.system.splitlines())
    assert list(lines) == list(schema["properties"]) == list(spec.data.json_fields) == schema["required"]
    for name, words in lines.items():
        assert words.replace(" or ", ", ").split(", ") == schema["properties"][name]["enum"]
