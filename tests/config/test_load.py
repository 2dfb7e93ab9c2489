"""The project file: what is refused, with which words, and where each value came from."""

import pytest
import yaml

from luthier.config.load import escape_env, known_keys, load_project
from luthier.config.project import ProjectSpec
from luthier.errors import ConfigError

MINIMAL = "data:\n  train: [a.csv]\n"


def load(tmp_path, text, *overrides):
    path = tmp_path / "luthier.yaml"
    path.write_text(text)
    return load_project(path, overrides)


REFUSED = [
    # (text after MINIMAL, --set, what the message must hold, what the hint must hold)
    ("train:\n  learning_rat: 1\n", (), ":4: unknown key train.learning_rat", "train.learning_rate"),
    ("trian:\n  num_epochs: 1\n", (), ":3: unknown key trian", "train"),
    ("lora_r: 8\n", (), ":3: unknown key lora_r", "adapter.lora_r"),
    ("train:\n  num_epochs: 1\n  num_epochs: 2\n", (), ":5: key 'num_epochs' stands twice", "keep one"),
    ("train:\n\tnum_epochs: 1\n", (), ":4: not valid YAML", "tabs"),
    ("x: !!python/object/apply:os.system [ls]\n", (), ":3: tag", "plain YAML"),
    ("goal: {owner: !Custom x}\n", (), ":3: tag !Custom", "plain YAML"),
    ("train: {seed: x}\n", (), ":3: train.seed: expected a whole number, got 'x'", ""),
    ("train: {learning_rate: fast}\n", (), ":3: train.learning_rate: expected a number, got 'fast'", ""),
    ("goal: {owner: !!timestamp x}\n", (), ":3: tag", "plain YAML"),
    ("train: {num_epochs: " + "9" * 5000 + "}\n", (), ":3: not valid YAML: too long", ""),
    ("adapter: {lora_target_modules: []}\n", (), ":3: adapter.lora_target_modules: no layer is named", ""),
    ("adapter: {lora_target_modules: [q_proj, '']}\n", (), ":3: adapter.lora_target_modules: no layer is named", ""),
    ("a: &a 1\nb: [" + ",".join(["*a"] * 60) + "]\n", (), "aliases", "write the values out"),
    ("train:\n  learning_rate: -1\n", (), ":4: train.learning_rate", ""),
    ("train:\n  learning_rate: .nan\n", (), ":4: train.learning_rate", ""),
    ("train:\n  learning_rate: .inf\n", (), ":4: train.learning_rate", ""),
    ("train:\n  num_epochs: 1.5\n", (), ":4: train.num_epochs", ""),
    ("train:\n  lr_scheduler: wsd\n  lr_decay_ratio: 0.97\n", (), "are more than the whole", ""),
    ("train:\n  lr_scheduler: polynomial\n", (), "'linear', 'cosine', 'constant' or 'wsd'", ""),
    ("train:\n  micro_batch_tokens: 64\n", (), "micro_batch_tokens: 64 is less than train.sequence_len", "at least"),
    ("train:\n  metric_for_best: token_f1\n  eval_task_rows: 4\n", (), "metric_for_best", "choose one of"),
    ("evaluate:\n  metric: json_exact\n", (), "needs answers that are JSON", "json_fields"),
    ('goal: {owner: "${LUTHIER_NO_SUCH_VARIABLE}"}\n', (), "LUTHIER_NO_SUCH_VARIABLE is not set", "export"),
    ("train: {seed: -1}\n", (), ":3: train.seed: expected greater than or equal to 0", ""),
    ("data2:\n", ("evaluate.seed=99999999999999999999",), "evaluate.seed: expected less than", ""),
    ("1: 2\n", (), ":3: 1: expected text as a key", ""),
    ("", ("data.split={train: 0.6, dev: 0, test: 0.4}", "train.early_stopping_patience=2"), "needs a dev split", "0.1"),
    ("", ("data.split={train: 0.6, dev: 0, test: 0.4}", "train.gap_rows=2"), "--set: train.gap_rows: needs a", "0.1"),
    ("", ("train.num_epoch=2",), "--set train.num_epoch: unknown key", "train.num_epochs"),
    ("", ("train.num_epochs",), "expected section.key=value", ""),
    ("", ("train.num_epochs=no",), "--set: train.num_epochs", ""),
]


@pytest.mark.parametrize(("text", "overrides", "message", "hint"), REFUSED, ids=[r[2][:40] for r in REFUSED])
def test_refused_with_place_key_and_next_move(tmp_path, text, overrides, message, hint):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL + text, *overrides)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_a_list_of_wrong_entries_is_not_called_empty_too(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "data:\n  train: [1]\n")
    assert "data.train.0: expected text" in str(caught.value) and "at least one entry" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "a: [", "data:\n"])
def test_files_that_hold_no_project(tmp_path, content):
    with pytest.raises(ConfigError):
        load(tmp_path, content)


def test_missing_directory_and_wrong_encoding(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_project(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not a file"):
        load_project(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("goal: {owner: Jörg}".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_project(tmp_path / "latin.yaml")


def test_yaml_1_2_scalars(tmp_path):
    spec = load(
        tmp_path,
        MINIMAL + "train: {learning_rate: 2e-5, weight_decay: 1E-2}\ngoal: {owner: no, review_date: 2027-01-01}\n",
    ).spec
    assert spec.train.learning_rate == 2e-5 and spec.train.weight_decay == 0.01
    assert spec.goal.owner == "no", "the Norway problem"
    assert spec.goal.review_date == "2027-01-01"


def test_origins_name_file_line_override_and_default(tmp_path):
    project = load(tmp_path, MINIMAL + "train:\n  num_epochs: 2\n", "adapter.lora_r=4", "train.learning_rate=3e-4")
    assert project.origins["train.num_epochs"] == "luthier.yaml:4"
    assert project.origins["adapter.lora_r"] == "--set" and project.spec.adapter.lora_r == 4
    assert project.origins["train.seed"] == "default" and project.spec.train.learning_rate == 3e-4


def test_environment_variables_expand(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_TEST_DATA", "/somewhere")
    assert load(tmp_path, 'data:\n  train: ["${LUTHIER_TEST_DATA}/a.csv"]\n').spec.data.train == ("/somewhere/a.csv",)


def test_a_doubled_dollar_keeps_braces_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_TEST_DATA", "x")
    spec = load(tmp_path, MINIMAL + 'goal: {owner: "$${LUTHIER_TEST_DATA} ${LUTHIER_TEST_DATA} $5"}\n').spec
    assert spec.goal.owner == "${LUTHIER_TEST_DATA} x $5"
    again = load(tmp_path, MINIMAL + f"goal: {{owner: {escape_env(spec.goal.owner)!r}}}\n").spec
    assert again.goal.owner == spec.goal.owner


def test_known_keys_are_the_fields_of_the_spec():
    keys = known_keys()
    assert len(keys) == len(set(keys))
    off = {"evaluate": {"gates": {"generalisation": {}}}, "rollouts": {"server": {"url": "http://a"}}}  # else no keys
    whole = {"data": {"train": ["a"]}, "model": {"rope_scaling": {"factor": 2}}, **off}
    dumped = yaml.safe_load(yaml.safe_dump(ProjectSpec(**whole).model_dump(mode="json")))

    def has(key):
        value = dumped
        for part in key.split("."):
            value = value[part]
        return True

    assert all(has(key) for key in keys)
