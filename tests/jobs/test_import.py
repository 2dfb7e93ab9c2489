"""`luthier import`: an Axolotl file becomes a project that trains, and every key of it is accounted for."""

from __future__ import annotations

import json

import pytest

from luthier.config.axolotl import import_axolotl
from luthier.config.load import load_project
from luthier.config.yaml_file import parse_yaml
from luthier.errors import ConfigError

# QLoRA of Llama 3 8B on conversations, with the keys that such files have most often.
QLORA = """\
base_model: BASE
load_in_4bit: true
strict: false

chat_template: llama3
datasets:
  - path: chats.jsonl
    ds_type: json
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
    roles_to_train: ["assistant"]
    train_on_eos: turn
val_set_size: 0.1
output_dir: ./outputs/qlora-out
dataset_prepared_path:

sequence_len: 128
sample_packing: true
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true

gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
max_steps: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
learning_rate: 2e-4
warmup_steps: 1
weight_decay: 0.01

bf16: auto
gradient_checkpointing: true
flash_attention: true
logging_steps: 1
evals_per_epoch: 4
saves_per_epoch: 1
special_tokens:
  pad_token: "<|end_of_text|>"
wandb_project:
context_parapllel_size: 2
"""


def imported(text: str):
    raw, lines = parse_yaml(text, "axolotl.yaml")
    return import_axolotl(raw, lines, is_local=lambda path: path.endswith(".jsonl"))


@pytest.fixture
def folder(tmp_path, tiny_base):
    words = ["kettle", "lamp", "table", "order", "parcel", "red", "blue", "green", "window", "login"]
    rows = [
        {"conversations": [{"from": "human", "value": f"{words[i % 10]} {words[i // 10]} number {i}"},
                           {"from": "gpt", "value": f"it is {words[(i * 7) % 10]} {i}"}]}
        for i in range(80)
    ]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "axolotl.yaml").write_text(QLORA.replace("BASE", str(tiny_base)))
    return tmp_path


def test_a_qlora_file_is_imported_and_trains_for_a_few_steps(folder, luthier):
    made = luthier("import", folder / "axolotl.yaml", "-o", folder / "luthier.yaml")
    assert made.exit_code == 0, made.output
    spec = load_project(folder / "luthier.yaml").spec
    assert (spec.train.learning_rate, spec.train.lr_scheduler, spec.train.warmup_ratio) == (2e-4, "cosine", 0.25)
    assert spec.train.lr_min_ratio == 0.1
    assert (spec.train.sequence_len, spec.train.micro_batch_tokens, spec.train.max_steps) == (128, 256, 4)
    assert spec.train.gradient_accumulation_steps == 2 and spec.train.weight_decay == 0.01
    assert (spec.adapter.lora_r, spec.adapter.lora_alpha, spec.adapter.lora_dropout) == (8, 16, 0.05)
    assert spec.adapter.lora_target_modules == "all-linear" and spec.data.format == "sharegpt"
    assert (
        spec.data.split.dev == 0.1
        and spec.data.over_length == "quarantine"
        and spec.model.dtype == "nf4"
        and spec.adapter.method == "qlora"
    )
    trained = luthier("train", "-c", folder / "luthier.yaml")
    assert trained.exit_code == 0, trained.output
    log = next((folder / "outputs/qlora-out").glob("train-*/metrics.jsonl")).read_text().splitlines()
    steps = [row for line in log if "loss" in (row := json.loads(line))]
    assert len(steps) >= 4
    assert next((folder / "outputs/qlora-out").glob("train-*/**/adapter_model.safetensors"))


def test_every_key_is_accounted_for_with_its_line(folder, luthier):
    said = luthier("import", folder / "axolotl.yaml", "-o", folder / "luthier.yaml").output
    said = " ".join(said.split())
    text = (folder / "luthier.yaml").read_text()
    keys = parse_yaml(QLORA, "x")[0]
    for key in keys:
        assert key in text, key
    for number, line in enumerate(QLORA.splitlines(), start=1):
        if line.startswith("learning_rate"):
            assert f"learning_rate (line {number})" in text
        if line.startswith("chat_template"):
            assert f"axolotl.yaml:{number} chat_template: the template of the base's tokenizer" in text
        if line.startswith("context_parapllel_size"):
            assert f":{number}: context_parapllel_size: unknown: did you mean context_parallel_size?" in said
    assert f"{len(keys)} keys of" in said and "evals_per_epoch: no counterpart" in said


DATASETS = {
    "{path: org/name, type: alpaca}": ({"format": "alpaca"}, ["hub:org/name"]),
    "{path: org/name, type: alpaca, revision: abc, data_files: [a.json]}": (
        {"format": "alpaca"},
        ["hub:org/name@abc/a.json"],
    ),
    "{path: org/name, type: alpaca, split: test}": ({"format": "alpaca"}, ["hub:org/name/**/*test*"]),
    "{path: a.jsonl, type: completion, field: body}": ({"format": "text", "fields": {"text": "body"}}, ["a.jsonl"]),
    "{path: a.jsonl, type: input_output}": ({"format": "segments"}, ["a.jsonl"]),
    "{path: a.jsonl, type: sharegpt}": ({"format": "sharegpt"}, ["a.jsonl"]),
    "{path: a.jsonl, type: explainchoice}": ({"format": "explainchoice"}, ["a.jsonl"]),
    "{path: a.jsonl, type: chat_template, field_messages: c, field_tools: f, roles: {user: [human, asker]}}": (
        {"format": "messages", "fields": {"turns": "c", "tools": "f"}, "roles": {"asker": "user"}},
        ["a.jsonl"],
    ),
    "{path: a.jsonl, type: chat_template, roles: {user: asker}}": (
        {"format": "messages", "roles": {"asker": "user"}},
        ["a.jsonl"],
    ),
    "{path: a.jsonl, type: {field_instruction: q, field_output: a, format: 'Q: {instruction}', system_prompt: s}}": (
        {"format": "columns", "prompt": "Q: {q}", "completion": "{a}", "system": "s"},
        ["a.jsonl"],
    ),
}


@pytest.mark.parametrize("entry", DATASETS)
def test_data_sets(entry):
    settings, paths = DATASETS[entry]
    done = imported(f"base_model: x\nlearning_rate: 1e-4\nadapter: lora\ndatasets:\n  - {entry}\n")
    found = {k.removeprefix("data."): v for k, v in done.values.items() if k.startswith("data.")}
    assert found.pop("train") == paths and not done.of_kind("refused")
    assert {key: found[key] for key in settings} == settings
    assert not ({"format", "fields", "roles", "prompt"} & set(found)) - set(settings)


def test_two_data_sets_of_two_formats_are_told_apart_by_their_columns():
    done = imported("base_model: x\nadapter: lora\ndatasets:\n"
                    "  - {path: a.jsonl, type: alpaca}\n  - {path: b.jsonl, type: chat_template}\n")  # fmt: skip
    assert done.values["data.format"] == "auto"


REFUSED = {
    "rl: grpo": "rl",
    "rl: ebft": "rl",
    "process_reward_model: true": "process_reward_model",
    "train_on_inputs: true": "train_on_inputs",
    "datasets: [{path: a.jsonl, type: my_code.transform}]": "datasets",
    "datasets: [{path: a.jsonl, type: chat_template, roles_to_train: [user]}]": "datasets",
    "datasets: [{path: a, type: completion, field: x}, {path: b, type: chat_template, field_messages: y}]": "datasets",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_would_train_something_else_is_refused_and_nothing_is_written(folder, luthier, line):
    text = QLORA if not line.startswith("datasets") else QLORA.split("datasets:")[0] + "adapter: lora\n"
    (folder / "axolotl.yaml").write_text(text + line + "\n")
    refused = luthier("import", folder / "axolotl.yaml", "-o", folder / "out.yaml")
    assert isinstance(refused.exception, ConfigError) and f": {REFUSED[line]}:" in str(refused.exception)
    number = len(text.splitlines()) + 1
    assert f"axolotl.yaml:{number}:" in str(refused.exception) and not (folder / "out.yaml").exists()


def test_what_is_no_axolotl_file_and_a_file_that_stands(folder, luthier):
    (folder / "luthier.yaml").write_text("mine")
    (folder / "number.yaml").write_text("base_model: 3\n")
    for source, words in (
        ("axolotl.yaml", "exists already"),
        ("luthier.yaml", "no base_model"),
        ("none.yaml", "no such file"),
        (".", "not a file"),
        ("chats.jsonl", "not valid YAML"),
        ("number.yaml", "number.yaml:1: base_model: expected a folder or a name, got 3"),
    ):
        refused = luthier("import", folder / source, "-o", folder / "luthier.yaml")
        assert isinstance(refused.exception, ConfigError) and words in str(refused.exception), source
    refused = luthier("import", folder / "luthier.yaml", "-o", folder / "other.yaml")
    assert "no base_model" in str(refused.exception)
    assert (folder / "luthier.yaml").read_text() == "mine"


PLAIN = """base_model: x
adapter: lora
datasets: [{path: a.jsonl, type: alpaca}]
"""
BAD_VALUES = {
    "num_epochs: lots": "expected a number, got 'lots'",
    "num_epochs: 0": "expected more than 0",
    "num_epochs: .nan": "expected a number",
    "sequence_len: abc": "expected a number, got 'abc'",
    "sequence_len: -5": "train.sequence_len does not take -5",
    "sequence_len: 100.5": "expected a whole number",
    "micro_batch_size: two": "expected a number, got 'two'",
    "micro_batch_size: 0": "expected 1 or more",
    "gradient_accumulation_steps: 0": "does not take 0",
    "batch_size: x": "expected a number",
    "max_steps: x": "expected a number",
    "warmup_steps: -3": "expected 0 or more",
    "warmup_ratio: 5": "train.warmup_ratio does not take 5",
    "cosine_min_lr_ratio: high": "expected a number",
    "val_set_size: -0.1": "expected a share",
    "learning_rate: fast": "expected a number",
    "learning_rate: 0": "train.learning_rate does not take 0",
    "weight_decay: -1": "train.weight_decay does not take -1",
    "lora_r: 0": "adapter.lora_r does not take 0",
    "lora_dropout: 2": "adapter.lora_dropout does not take 2",
    "seed: [1]": "expected a number",
    "rl: grpo": "loss.kind: grpo has its own",
    "datasets: [{path: a, type: chat_template, roles: [a]}]": "roles is no mapping",
    "datasets: [{path: a, type: chat_template, message_property_mappings: [a]}]": "is no mapping",
    "datasets: [{path: a, type: }]": "token ids",
    "datasets: a.jsonl": "has no path",
    "unfrozen_parameters: [lm_head]\nadapter: null": "all weights would be trained",
}


@pytest.mark.parametrize("line", BAD_VALUES)
def test_a_value_that_would_be_passed_over_is_refused_at_its_line(line):
    """Another learning rate than the file's is another run: nothing falls back to a default in silence."""
    keys = [given.partition(":")[0] for given in line.splitlines()]
    text = "".join(f"{given}\n" for given in PLAIN.splitlines() if given.partition(":")[0] not in keys) + line + "\n"
    done = imported(text)
    found = [note for note in done.of_kind("refused") if note.key == keys[0]]
    assert found and any(BAD_VALUES[line] in note.text for note in found), done.notes
    assert found[0].line == text.splitlines().index(line.splitlines()[0]) + 1


def test_numbers_that_are_written_as_text_are_read_as_axolotl_reads_them():
    done = imported(PLAIN + "learning_rate: '2e-4'\nsequence_len: 500_000\nmax_steps: '10'\nwarmup_steps: '2'\n"
                    "val_set_size: '0.1'\noutput_dir: ''\n3: 2\n")  # fmt: skip
    train = {key.removeprefix("train."): value for key, value in done.values.items() if key.startswith("train.")}
    assert (train["learning_rate"], train["sequence_len"], train["max_steps"]) == (2e-4, 500_000, 10)
    assert train["warmup_ratio"] == 0.2 and done.values["data.split"]["dev"] == 0.1
    assert "output_dir" not in done.values and not done.of_kind("refused")
    assert {note.key.lower() for note in done.of_kind("unknown")} == {"3"}


OBJECTIVES = {
    "rl: dpo\nrl_beta: 0.3\ndpo_label_smoothing: 0.1": {"kind": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    "rl: ipo": {"kind": "dpo", "variant": "ipo"},
    "rl: orpo\norpo_alpha: 0.2": {"kind": "orpo", "beta": 0.2},
    "rl: simpo\nsimpo_gamma: 0.5": {"kind": "simpo", "simpo_gamma": 0.5},
    "rl: kto\nkto_desirable_weight: 0.2\nrl_beta: 0.5": {"kind": "kto", "desirable_weight": 0.2, "beta": 0.5},
    "reward_model: true\nnum_labels: 1\ncenter_rewards_coefficient: 0.01": {"kind": "reward", "center_weight": 0.01},
    "orpo_alpha: 0.2": {},
}


@pytest.mark.parametrize("lines", OBJECTIVES)
def test_objectives_keep_the_figures_of_their_loss(lines):
    done = imported(PLAIN + lines + "\n")
    loss = {key.removeprefix("loss."): value for key, value in done.values.items() if key.startswith("loss.")}
    assert loss == OBJECTIVES[lines] and not done.of_kind("refused") and not done.of_kind("unknown")


@pytest.mark.parametrize(
    ("objective", "kind", "wanted"),
    [
        ("rl: dpo", "chat_template.default", {"format": "preference", "fields": {"turns": "c", "chosen": "good"}}),
        ("rl: kto", "llama3.ultra", {"format": "kto"}),
        ("reward_model: true", "bradley_terry.chat_template", {"format": "preference", "fields": {"chosen": "good",
                                                                                                  "turns": "c"}}),
        ("rl:", "chat_template.default", {"format": "messages", "fields": {"turns": "c"}}),
    ],
)  # fmt: skip
def test_a_type_means_the_columns_of_its_objective(objective, kind, wanted):
    entry = f"{{path: a.jsonl, type: {kind}, field_messages: c, field_chosen: good, field_rejected: rejected}}"
    done = imported(f"base_model: x\nadapter: lora\n{objective}\ndatasets: [{entry}]\n")
    found = {key.removeprefix("data."): value for key, value in done.values.items() if key.startswith("data.")}
    assert {key: found.get(key) for key in wanted} == wanted and not done.of_kind("refused")
