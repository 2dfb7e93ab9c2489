"""Cross-section checks: pure functions from a resolved spec to problems (key, what is wrong, next move). They never
edit."""

from __future__ import annotations

from luthier.config.adapter_checks import adapter_problems
from luthier.config.evaluate import EvaluateSpec
from luthier.config.project import ProjectSpec
from luthier.config.rollouts import RolloutsSpec

Problem = tuple[str, str, str]


def _budget_holds_a_row(spec: ProjectSpec) -> list[Problem]:
    if spec.train.micro_batch_tokens >= spec.train.sequence_len:
        return []
    return [
        (
            "train.micro_batch_tokens",
            f"{spec.train.micro_batch_tokens} is less than train.sequence_len {spec.train.sequence_len}, "
            "so a long row fits no batch",
            f"set it to at least {spec.train.sequence_len}",
        )
    ]


def _metrics(spec: ProjectSpec) -> set[str]:
    """All metrics that are computed, parts of all_of among them."""
    metrics = {spec.evaluate.metric, *spec.evaluate.metrics}
    return metrics | set(spec.evaluate.graders.all_of if "all_of" in metrics else ())


def _json_metric_has_json(spec: ProjectSpec) -> list[Problem]:
    needs_json = any(metric.startswith("json_") for metric in _metrics(spec))
    if not needs_json or spec.data.json_fields or spec.data.json_schema:
        return []
    return [
        (
            "evaluate.metric",
            "a json_ metric needs answers that are JSON objects",
            "give data.json_fields or data.json_schema, or choose exact_match",
        )
    ]


def _regex_metric_has_pattern(spec: ProjectSpec) -> list[Problem]:
    if "regex" not in _metrics(spec) or spec.evaluate.graders.regex.pattern:
        return []
    return [("evaluate.graders.regex.pattern", "the metric regex has no pattern", "give one, or choose another metric")]


def _all_of_has_parts(spec: ProjectSpec) -> list[Problem]:
    if "all_of" not in _metrics(spec) or spec.evaluate.graders.all_of:
        return []
    return [("evaluate.graders.all_of", "the metric all_of has no parts", "name them, such as [regex, grounded]")]


def _best_metric_is_known(spec: ProjectSpec) -> list[Problem]:
    best, figures = spec.train.metric_for_best, spec.loss.figures
    tasks = () if spec.loss.has_score_head else tuple(dict.fromkeys((spec.evaluate.metric, *spec.evaluate.metrics)))
    if best != "loss" and best not in (*tasks, *figures):
        words = f"{best!r} is not computed in this project"
        return [("train.metric_for_best", words, f"choose one of: {', '.join(('loss', *figures, *tasks))}")]
    if best in tasks and best not in figures and not spec.train.eval_task_rows:
        words = f"{best!r} is a task metric, and no dev row is answered while training"
        return [("train.metric_for_best", words, "set train.eval_task_rows to how many dev rows to answer")]
    return []


def _dev_figures_have_dev_rows(spec: ProjectSpec) -> list[Problem]:
    """What a run chooses by dev figures, where the split says for certain that there are none."""
    train, split = spec.train, spec.data.split
    asked = {
        "train.early_stopping_patience": train.early_stopping_patience is not None,
        "train.metric_for_best": train.metric_for_best != "loss",
        "train.gap_rows": train.gap_rows > 0,
        "train.average_checkpoints": train.average_checkpoints is not None,
    }
    if split.by == "column" or split.dev or spec.loss.is_online:
        return []
    words, hint = "needs a dev split, and data.split.dev is 0", "give dev a share, such as 0.1, or drop it"
    return [(key, words, hint) for key, is_set in asked.items() if is_set]


def _average_means_something(spec: ProjectSpec) -> list[Problem]:
    train = spec.train
    if spec.adapter.method != "adalora" or (train.ema_decay is None and train.average_checkpoints is None):
        return []
    key = "train.ema_decay" if train.ema_decay is not None else "train.average_checkpoints"
    words = "adalora takes ranks away on its way, and an average would bring them back"
    return [(key, words, f"{key}: null, or adapter.method: lora")]


def _prompts_have_dev_rows(spec: ProjectSpec) -> list[Problem]:
    search: EvaluateSpec = spec.evaluate
    if search.prompt.finalists <= len(search.prompt.shots) * len(search.prompt.instructions):
        return []
    return [("evaluate.prompt.finalists", "more finalists than candidates", "lower it, or add shots or instructions")]


def _chunks_bring_new_tokens(spec: ProjectSpec) -> list[Problem]:
    overlap, longest = spec.loss.chunk_overlap, spec.train.sequence_len
    if overlap is None or overlap < longest:
        return []
    words = f"{overlap} is not below train.sequence_len {longest}, so a chunk would bring no new token"
    return [("loss.chunk_overlap", words, "lower it")]


def _base_can_be_compared(spec: ProjectSpec) -> list[Problem]:
    loss, adapter = spec.loss, spec.adapter
    if not loss.compares_with_base or (adapter.facts.keeps_base and not adapter.modules_to_save):
        return []
    words = f"loss.kind {loss.kind} compares with the base, and this trains the base's own weights"
    return [("adapter.method", words, "adapter.method: lora, without modules_to_save")]


def _score_head_has_an_adapter(spec: ProjectSpec) -> list[Problem]:
    adapter = spec.adapter
    if not spec.loss.has_score_head or (adapter.method == "lora" and not adapter.modules_to_save):
        return []
    words = f"a score head stands beside an adapter of method lora, and the method is {adapter.method}"
    return [("adapter.method", words, "adapter.method: lora, without modules_to_save")]


def _rewards_need_nothing_more(spec: ProjectSpec) -> list[Problem]:
    """What the chosen rewards read must be there."""
    named, problems = spec.rollouts.rewards, []
    if "regex" in named and not spec.evaluate.graders.regex.pattern:
        problems.append(("evaluate.graders.regex.pattern", "the reward regex has no pattern", "give one"))
    compared = sorted({"json_exact", "json_field_accuracy"} & named.keys())
    if compared and not (spec.data.json_fields or spec.data.json_schema):
        words = f"{compared[0]} compares with answers that are JSON objects"
        problems.append(("rollouts.rewards", words, "give data.json_fields or data.json_schema, or another reward"))
    return problems


def _rollouts_are_whole(spec: ProjectSpec) -> list[Problem]:
    kind, rollouts = spec.loss.kind, spec.rollouts
    if not spec.loss.is_online:
        if rollouts == RolloutsSpec():
            return []
        return [
            (
                "rollouts",
                f"loss.kind {kind} samples no answers",
                "drop the section, or choose loss.kind: grpo, ppo or gkd",
            )
        ]
    if not spec.loss.needs_rewards:
        return _judged_by_a_teacher(spec) or _rollouts_fit_a_step(spec)
    if not rollouts.has_reward:
        words = f"loss.kind {kind} learns from rewards, and there is none"
        hint = "name one or more with their weights, e.g. {json_valid: 1.0}, or give rollouts.reward_model"
        return [("rollouts.rewards", words, hint)]
    if kind == "grpo" and rollouts.answers < 2:
        words = "one answer to a prompt has no other to be compared with"
        return [("rollouts.answers", words, "2 or more; 8 is usual")]
    if rollouts.resample > 1 and rollouts.answers < 2:
        words = "with one answer to a prompt no prompt has answers with different rewards"
        return [("rollouts.resample", words, "rollouts.answers: 2 or more, or drop it")]
    return _rollouts_fit_a_step(spec)


def _judged_by_a_teacher(spec: ProjectSpec) -> list[Problem]:
    kind, rollouts = spec.loss.kind, spec.rollouts
    if rollouts.has_reward:
        key = "rollouts.rewards" if rollouts.rewards else "rollouts.reward_model"
        return [(key, f"loss.kind {kind} learns from its teacher alone", "drop it, or choose loss.kind: grpo or ppo")]
    if rollouts.resample > 1:
        words = f"loss.kind {kind} rewards no answer, so no prompt has answers with different rewards"
        return [("rollouts.resample", words, "drop it")]
    if spec.loss.on_policy != 1.0 and rollouts.answers != 1:
        words = "with loss.on_policy below 1 a prompt has one answer, of the student or of its row"
        return [("rollouts.answers", words, "set it to 1")]
    return []


def _server_can_be_believed(spec: ProjectSpec) -> list[Problem]:
    server, adapter = spec.rollouts.server, spec.adapter
    if server is None or not spec.loss.is_online:
        return []
    if spec.rollouts.temperature != 1.0:
        words = "servers tell log-probabilities from before or from after the temperature; at 1 both are the same"
        return [("rollouts.temperature", words, "set it to 1")]
    if spec.model.rope_scaling is not None:
        words = "the server answers with the base as it came, and this trains one with a longer context"
        return [("rollouts.server", words, "drop it, or give a base that has this context: a merged folder of one")]
    if server.weights == "adapter" and adapter.method != "lora":
        words = f"servers load adapters of method lora, and this one is {adapter.method}"
        return [("rollouts.server.weights", words, "adapter.method: lora, or rollouts.server.weights: base")]
    if server.weights == "base" and not (adapter.facts.keeps_base and not adapter.modules_to_save):
        words = "answers of the base are weighed against it, and this trains the base's own weights"
        return [("adapter.method", words, "adapter.method: lora, without modules_to_save")]
    if server.weights == "base" and spec.loss.kind == "ppo":
        words = "ppo takes the distance to the base off the rewards as it was sampled, and the base has none to itself"
        return [("rollouts.server.weights", words, "rollouts.server.weights: adapter, or loss.kind: grpo")]
    return []


def _rollouts_fit_a_step(spec: ProjectSpec) -> list[Problem]:
    rollouts = spec.rollouts
    if spec.longest_row < 1:
        words = f"{rollouts.max_new_tokens} leaves no room for a prompt in train.sequence_len {spec.train.sequence_len}"
        return [("rollouts.max_new_tokens", words, "lower it, or raise train.sequence_len")]
    if spec.adapter.lora_dropout:
        words = "with dropout the answers would be learnt from under another model than the one that gave them"
        return [("adapter.lora_dropout", words, "set it to 0")]
    if spec.train.gradient_accumulation_steps != 1:
        words = "a step of an online objective is as large as rollouts.prompts and rollouts.inner_batches say"
        return [("train.gradient_accumulation_steps", words, "drop it")]
    return []


def _rows_are_there_before_the_run(spec: ProjectSpec) -> list[Problem]:
    """An online run makes its rows on its way: there is nothing to order, and nothing it has been trained on."""
    train, kind = spec.train, spec.loss.kind
    if not spec.loss.is_online:
        return []
    problems = []
    if train.curriculum != "none":
        words = f"loss.kind {kind} deals prompts to rounds by the seed, and their answers have no length yet"
        problems.append(("train.curriculum", words, "drop it"))
    if train.gap_rows:
        words = f"loss.kind {kind} is not trained on given answers, so there is no loss of them to look back at"
        problems.append(("train.gap_rows", words, "drop it"))
    return problems


def _replayed_rows_are_of_the_objective(spec: ProjectSpec) -> list[Problem]:
    if not spec.data.mix.replay.files or spec.loss.sequences in ("turns", "documents"):
        return []
    words = f"general conversations and documents are nothing that loss.kind {spec.loss.kind} learns from"
    hint = "drop it; a lower train.learning_rate or a longer train.warmup_ratio also saves what the base knows"
    return [("data.mix.replay.files", words, hint)]


def find_problems(spec: ProjectSpec) -> list[Problem]:
    """All problems of a resolved project file that no single section can see."""
    checks = (
        _budget_holds_a_row,
        _json_metric_has_json,
        _regex_metric_has_pattern,
        _all_of_has_parts,
        _best_metric_is_known,
        _dev_figures_have_dev_rows,
        _average_means_something,
        _prompts_have_dev_rows,
        _chunks_bring_new_tokens,
        _base_can_be_compared,
        _score_head_has_an_adapter,
        _rollouts_are_whole,
        _server_can_be_believed,
        _rewards_need_nothing_more,
        _rows_are_there_before_the_run,
        _replayed_rows_are_of_the_objective,
        adapter_problems,
    )
    return [problem for check in checks for problem in check(spec)]
