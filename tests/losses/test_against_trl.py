"""The whole path against TRL's trainers: packed, shared-prefix batches through our decoder, padded ones through theirs.

The same tiny base, the same token ids and masks, the same reference model.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.config.loss import LossSpec
from luthier.data.pack import at_last_token, make_batch, make_shared_batch, with_columns
from luthier.data.sequences import Mismatched
from luthier.data.stored import EncodedSet
from luthier.engine.inputs import to_device
from luthier.losses.divergence import divergence
from luthier.losses.head import policy_logps
from luthier.losses.policy import ADVANTAGE, OLD, REF
from luthier.losses.registry import make_loss
from luthier.losses.sequences import REFERENCE, sequence_logps
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from luthier.types import EncodedRow
from tests.tiny import make_tiny_base

trl = pytest.importorskip("trl", reason="TRL is the reference here (pip install trl)")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
PROMPTS = ["The quick brown fox jumps over the lazy dog, and what is the label of this text?", "red green blue"]
PAIRS = [
    {"prompt": PROMPTS[0], "chosen": " yes, it is", "rejected": " no"},
    {"prompt": PROMPTS[1], "chosen": " count 3", "rejected": " the lazy dog jumps over the fox"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(our policy, our reference, their policy, their reference, tokenizer): two random tiny Llamas."""
    folders = [make_tiny_base(tmp_path_factory.mktemp("trl") / str(seed), seed=seed) for seed in (1, 2)]
    ours = [load_model(folder) for folder in folders]
    theirs = [transformers.AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders]
    return (*ours, *theirs, transformers.AutoTokenizer.from_pretrained(folders[0]))


@pytest.fixture
def settings(tmp_path):
    """What every TRL trainer here is told."""
    return {
        "output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "per_device_train_batch_size": 2,
    }  # fmt: skip


def rows_of(ids, attention, completion) -> list[EncodedRow]:
    """TRL's padded rows as ours."""
    made = []
    for index in range(len(ids)):
        real = attention[index].bool()
        trained = tuple(bool(flag) for flag in completion[index][real])
        made.append(EncodedRow(f"row-{index}", tuple(ids[index][real].tolist()), trained))
    return made


def paired(rows: list[EncodedRow]) -> list[EncodedRow]:
    half = len(rows) // 2
    return [
        EncodedRow(c.row_id, c.ids, c.trained, companions=(r,)) for c, r in zip(rows[:half], rows[half:], strict=True)
    ]


def test_dpo_and_all_its_variants(models, settings):
    """TRL's compute_loss, each variant; ours on packs that share the prompts and on packs that do not."""
    policy, base, theirs, their_base, tokenizer = models
    trainer = trl.DPOTrainer(
        model=theirs, ref_model=their_base, args=trl.DPOConfig(**settings), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(PAIRS),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    rows = paired(rows_of(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]))
    shared = to_device(make_shared_batch(rows, min_prefix_tokens=4), CPU)
    assert shared.parents_D is not None, "the sides share their prompt"
    for batch in (shared, to_device(make_batch(rows), CPU)):
        with torch.no_grad():
            reference, _ = sequence_logps(base, batch, 4)
        batch.columns[REFERENCE] = reference  # type: ignore[index]
        for variant, smoothing in (
            ("sigmoid", 0.0),
            ("robust", 0.1),
            ("hinge", 0.0),
            ("ipo", 0.0),
            ("sigmoid_norm", 0),
        ):
            trainer.loss_types, trainer.label_smoothing = [variant], smoothing
            with torch.no_grad():
                expected = trainer.compute_loss(theirs, dict(inputs)).item()
                sums = make_loss(LossSpec(kind="dpo", variant=variant, label_smoothing=smoothing)).sums(policy, batch)
            assert sums.total.item() / 2 == pytest.approx(expected, rel=3e-6), variant


def test_kto(models, settings):
    """TRL's own mismatched pairs (the answers rolled by one) and its KL estimate are ours."""
    policy, base, theirs, their_base, tokenizer = models
    answers = [(PROMPTS[0], " yes, it is", True), (PROMPTS[1], " the lazy dog", False), ("hello world", " 0 1 2", True)]
    data = [{"prompt": prompt, "completion": said, "label": label} for prompt, said, label in answers]
    trainer = trl.KTOTrainer(
        model=theirs, ref_model=their_base, processing_class=tokenizer,
        args=trl.KTOConfig(**{**settings, "per_device_train_batch_size": 3}, beta=0.5, undesirable_weight=1.5),
        train_dataset=datasets.Dataset.from_list(data),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    with torch.no_grad():
        expected = trainer.compute_loss(theirs, dict(inputs)).item()
    rows = rows_of(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
    mismatched = Mismatched(EncodedSet.of(rows))
    columns = {"label_R": {row.row_id: (float(flag),) for row, flag in zip(rows, inputs["label"], strict=True)}}
    loss = make_loss(LossSpec(kind="kto", beta=0.5, undesirable_weight=1.5))
    for packs in ([[0, 1, 2]], [[2], [0, 1]]):  # the estimate spans the step, so the split does not matter
        batches = []
        for pack in packs:
            plain = [mismatched[index] for index in pack]
            batch = to_device(make_batch(plain), CPU)
            with torch.no_grad():
                logps = sequence_logps(base, batch, 2 * len(pack))[0].reshape(-1, 2).tolist()
            reference = dict(zip(batch.row_ids, map(tuple, logps), strict=True))
            made = with_columns(make_batch, {**columns, REFERENCE: reference})(plain)
            batches.append(to_device(made, CPU))
        step = loss.of_step(policy, batches)
        with torch.no_grad():
            total = sum(step.sums(policy, batch).total.item() for batch in batches)
        assert total / 3 == pytest.approx(expected, rel=3e-6)


def test_reward_model_with_margin(models, settings):
    """Scores of the last token of each side; the same head in both models. transformers looks for the last token that
    is no padding, so the padding must be another token than the stop.
    """
    policy, *_, tokenizer = models
    tokenizer.pad_token = "<|endoftext|>"
    theirs = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**{**policy.config, "num_labels": 1, "pad_token_id": tokenizer.pad_token_id})
    ).eval()
    state = {name: p for name, p in policy.state_dict().items() if name.startswith("model.")}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    trainer = trl.RewardTrainer(
        model=theirs, args=trl.RewardConfig(**settings, center_rewards_coefficient=0.01), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{**pair, "margin": 0.3 * i} for i, pair in enumerate(PAIRS, 1)]),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    with torch.no_grad():
        expected = trainer.compute_loss(theirs, dict(inputs)).item()
    lengths = inputs["attention_mask"].sum(1)
    last = torch.zeros_like(inputs["attention_mask"])
    last[torch.arange(len(lengths)), lengths - 1] = 1
    rows = paired(rows_of(inputs["input_ids"], inputs["attention_mask"], last))
    margins = {row.row_id: (float(m),) for row, m in zip(rows, inputs["margin"], strict=True)}
    batch = to_device(at_last_token(with_columns(make_batch, {"margin_R": margins})(rows)), CPU)
    policy.score = theirs.score
    try:
        loss = make_loss(LossSpec(kind="reward", margin_column="margin", center_weight=0.01))
        with torch.no_grad():
            assert loss.sums(policy, batch).total.item() / 2 == pytest.approx(expected, rel=3e-6)
    finally:
        del policy.score


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo"])
def test_grpo_and_its_variants(models, settings, variant):
    """TRL's own loss on two prompts with two answers each, sampled under other log-probabilities and held to a
    reference; clip at both ends. Ours on packs that share the prompts, split as it comes.
    """
    policy, base, theirs, _, tokenizer = models
    config = trl.GRPOConfig(
        **{**settings, "per_device_train_batch_size": 4}, num_generations=2, max_completion_length=9, beta=0.3,
        epsilon=0.1, epsilon_high=0.25, loss_type=variant, use_bias_correction_kl=False, temperature=0.7,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=theirs, args=config, processing_class=tokenizer, reward_funcs=lambda completions, **_: [0.0],
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
    )  # fmt: skip
    theirs.eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    answers = [torch.randint(3, 250, (n,), generator=generator).tolist() for n in (3, 7, 5, 1)]
    asked = [prompts[0], prompts[0], prompts[1], prompts[1]]
    rows = [
        EncodedRow(f"r/{i}", (*p, *a), (False,) * len(p) + (True,) * len(a))
        for i, (p, a) in enumerate(zip(asked, answers, strict=True))
    ]
    advantages = [1.0, -0.5, 0.7, -1.2]
    columns: dict = {
        ADVANTAGE: {row.row_id: (a,) * len(s) for row, a, s in zip(rows, advantages, answers, strict=True)}
    }
    loss = replace(
        make_loss(LossSpec(kind="grpo", variant=variant, clip_low=0.1, clip_high=0.25, kl_to_base=0.3)),
        temperature=0.7,
        longest=9,
    )
    for name, model in ((OLD, policy), (REF, base)):
        columns[name] = {}
        for row, said in zip(rows, answers, strict=True):
            batch = to_device(make_batch([row]), CPU)
            with torch.no_grad():
                logps, _ = policy_logps(model, model.hidden(batch), batch.targets_K, 0.7)
            noise = 0.3 * torch.randn(len(said), generator=generator) if name == OLD else 0
            columns[name][row.row_id] = tuple((logps + noise).tolist())

    def padded(values, left=False, fill=0.0):
        width = max(map(len, values))
        return torch.tensor(
            [[fill] * (width - len(v)) * left + [*v] + [fill] * (width - len(v)) * (not left) for v in values]
        )

    table = {name: padded([columns[name][row.row_id] for row in rows]) for name in (OLD, REF)}
    inputs = {
        "prompt_ids": padded(asked, left=True, fill=0), "prompt_mask": padded([[1] * len(p) for p in asked], True, 0),
        "completion_ids": padded(answers, fill=0), "completion_mask": padded([[1] * len(a) for a in answers], fill=0),
        "advantages": torch.tensor(advantages), "old_per_token_logps": table[OLD],
        "ref_per_token_logps": table[REF], "num_items_in_batch": torch.tensor(16),
    }  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        expected = trainer._compute_loss(theirs, inputs).item()
    total, units, held = 0.0, 0.0, 0.0
    for pack in ([0, 1, 2], [3]):
        lay_out = with_columns(lambda some: make_shared_batch(some, min_prefix_tokens=2), columns)
        batch = to_device(lay_out([rows[i] for i in pack]), CPU)
        with torch.no_grad():
            sums = loss.sums(policy, batch)
        total, units = total + sums.total.item(), units + loss.count(batch)
        held += sums.figures["clip_share"].sum().item()
    assert total / units == pytest.approx(expected, rel=3e-6) and held > 0


@pytest.mark.known_bug("CE6")
@pytest.mark.parametrize(
    ("name", "beta"), [("forward_kl", 0.0), ("js", 0.1), ("js", 0.5), ("js", 0.9), ("reverse_kl", 1)]
)
def test_divergences_equal_gkds(name, beta):
    """TRL's generalised Jensen-Shannon divergence from end to end; gradient by finite differences."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 1, 6, 40)
    expected = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=2.0, reduction="sum")
    share = beta if name == "js" else 0.5
    got = divergence(name, student[0], teacher[0], 2.0, share).sum() / 4  # ours keeps the gradient's size: T^2
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    small, fixed = torch.randn(2, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: divergence(name, x, fixed, 2.0, share), [small])


@pytest.mark.parametrize(("name", "beta"), [("forward_kl", 0.0), ("js", 0.2), ("js", 0.9), ("reverse_kl", 1.0)])
def test_on_policy_distillation(models, settings, name, beta):
    """TRL's GKDTrainer on the same answers of the student, right-padded; ours on packs that share the prompts."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    policy, base, theirs, their_base, tokenizer = models
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    trainer = gkd.GKDTrainer(
        model=theirs, teacher_model=their_base, processing_class=tokenizer,
        args=gkd.GKDConfig(**settings, beta=beta, temperature=1.0),
        train_dataset=datasets.Dataset.from_list([{"messages": turns}]),
    )  # fmt: skip
    theirs.eval()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    sampler = LocalSampler(policy, encode=list, decode=str, stop_ids=[2], name="student")
    said = sampler.sample_ids([p for p in prompts for _ in range(2)], max_new_tokens=7, temperature=1.0, seed=2)
    rows = [
        EncodedRow(f"{i}", (*p, *one.ids), (False,) * len(p) + (True,) * len(one.ids))
        for i, (p, one) in enumerate(zip([p for p in prompts for _ in range(2)], said, strict=True))
    ]
    width = max(len(row.ids) for row in rows)
    padded = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        pad = width - len(row.ids)
        padded["input_ids"].append([*row.ids] + [0] * pad)
        padded["attention_mask"].append([1] * len(row.ids) + [0] * pad)
        padded["labels"].append([t if f else -100 for t, f in zip(row.ids, row.trained, strict=True)] + [-100] * pad)
    inputs = {key: torch.tensor(value) for key, value in padded.items()}
    with torch.no_grad():
        expected = trainer.compute_loss(theirs, inputs).item()
        spec = LossSpec(kind="gkd", teacher="x", divergence=name, js_beta=beta if name == "js" else None)
        loss, total, units = make_loss(spec, base), 0.0, 0.0
        for pack in ([0, 1, 3], [2]):
            batch = to_device(make_shared_batch([rows[i] for i in pack], min_prefix_tokens=2), CPU)
            total, units = total + loss.sums(policy, batch).total.item(), units + loss.count(batch)
    assert total / units == pytest.approx(expected, rel=1e-6, abs=1e-7)
