"""TRL's side of objectives.py: its trainer for an objective, a few steps on rows that were written down for it.

As fast as it comes without changing what is learnt: float32, no recompute, padded batches, reference computed before
the first step (DPO, KTO). The trainers of TRL 1.16; it has none for PPO, classes or numbers.
"""

from __future__ import annotations

import json
import tempfile
import time
from typing import Any

RANK = 8
TRAINERS = {
    "sft": ("trl", "SFT"), "continued": ("trl", "SFT"), "distill": ("trl.experimental.gkd", "GKD"),
    "dpo": ("trl", "DPO"), "orpo": ("trl.experimental.orpo", "ORPO"), "simpo": ("trl.experimental.cpo", "CPO"),
    "cpo": ("trl.experimental.cpo", "CPO"), "kto": ("trl", "KTO"), "reward": ("trl", "Reward"),
    "grpo": ("trl", "GRPO"), "gkd": ("trl.experimental.gkd", "GKD"),
}  # fmt: skip
"""kind -> (module, name of the trainer without `Trainer`)."""
OWN = {
    "distill": {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0},
    "gkd": {"lmbda": 1.0, "beta": 1.0, "temperature": 1.0, "max_new_tokens": 32},
    "dpo": {"precompute_ref_log_probs": True}, "kto": {"precompute_ref_log_probs": True},
    "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
    "grpo": {"num_generations": 8, "max_completion_length": 32, "beta": 0.0, "temperature": 1.0},
}  # fmt: skip
"""kind -> settings of its trainer, as the project files of objective_rows.py have them."""
SAMPLED = ("grpo", "gkd")


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    """job: kind, rows, base, teacher, rows_per_step, steps; also dtype and micro_batch.

    Returns ends, the processor and wall time after each step, and tokens of each step where the model samples. Raises
    SystemExit for a run that does not learn.
    """
    import importlib

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    kind = job["kind"]
    module, name = TRAINERS[kind]
    found = importlib.import_module(module)
    trainer_class, config_class = getattr(found, f"{name}Trainer"), getattr(found, f"{name}Config")
    dtype = torch.bfloat16 if job.get("dtype") == "bf16-weights" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    ends: list[tuple[float, float]] = []
    tokens: list[int] = []

    class Timer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append((time.process_time(), time.perf_counter()))

    class Counting(trainer_class):
        """Writes down how many tokens were sampled for a step."""

        def compute_loss(self, model, inputs, *args, **kwargs):
            if kind in SAMPLED:
                marked = inputs["completion_mask"] if "completion_mask" in inputs else inputs["labels"] != -100
                tokens.append(int(marked.sum()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    if kind == "reward":
        tokenizer.pad_token = "<|endoftext|>"
        model = AutoModelForSequenceClassification.from_pretrained(job["base"], num_labels=1, dtype=dtype)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=modules, task_type="SEQ_CLS" if kind == "reward" else "CAUSAL_LM"
    )
    given = {"model": model, "peft_config": lora, "processing_class": tokenizer, "callbacks": [Timer()]}
    if kind in ("distill", "gkd"):
        given["teacher_model"] = AutoModelForCausalLM.from_pretrained(job["teacher"], dtype=dtype)
    if kind == "grpo":
        given["reward_funcs"] = _reward
    micro = job.get("micro_batch", job["rows_per_step"])
    with tempfile.TemporaryDirectory() as out:
        config = config_class(
            output_dir=out, report_to="none", use_cpu=True, seed=0, data_seed=0, logging_steps=1, save_strategy="no",
            max_steps=job["steps"], learning_rate=1e-4, lr_scheduler_type="constant", disable_tqdm=True,
            per_device_train_batch_size=micro, gradient_accumulation_steps=job["rows_per_step"] // micro,
            optim="adamw_torch_fused", bf16=job.get("dtype") == "bf16-autocast",
            gradient_checkpointing=False, train_sampling_strategy="sequential",
            **OWN.get(kind, {}),
        )  # fmt: skip
        trainer = Counting(
            args=config, train_dataset=Dataset.from_list([_row(kind, row) for row in job["rows"]]), **given
        )
        trainer.train()
    norms = [float(line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]
    if not norms or not all(norm > 0 for norm in norms):
        raise SystemExit(f"TRL, {kind}: a gradient norm is not above zero: a run that does not learn is no measurement")
    return {"ends": ends, "tokens": tokens}


def _row(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of TRL's columns, from messages: prompt, answer, and rejected or label where there is any."""
    answer = {"role": "assistant", "content": row.get("answer", "")}
    if kind == "continued":
        return {"text": row["text"]}
    if kind in ("distill", "gkd"):
        return {"messages": [*row["prompt"], answer]}
    if kind == "grpo":
        return {"prompt": row["prompt"]}
    if kind in ("sft", "kto"):
        return {"prompt": row["prompt"], "completion": [answer]} | ({"label": row["label"]} if kind == "kto" else {})
    rejected = {"role": "assistant", "content": row["rejected"]}
    return {"prompt": row["prompt"], "chosen": [answer], "rejected": [rejected]}


def _reward(completions: list, **_: Any) -> list[float]:
    return [float(_parses(one[0]["content"])) for one in completions]


def _parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
