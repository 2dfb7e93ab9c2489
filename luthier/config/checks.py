"""Cross-section checks: pure functions from a resolved spec to problems (key, what is wrong, next move). They never
edit."""

from __future__ import annotations

from luthier.config.adapter_checks import adapter_problems
from luthier.config.evaluate import EvaluateSpec
from luthier.config.project import ProjectSpec

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


def _json_metric_has_json(spec: ProjectSpec) -> list[Problem]:
    metrics = {spec.evaluate.metric, *spec.evaluate.metrics}
    if not any(metric.startswith("json_") for metric in metrics) or spec.data.json_fields or spec.data.json_schema:
        return []
    return [
        (
            "evaluate.metric",
            "a json_ metric needs answers that are JSON objects",
            "give data.json_fields or data.json_schema, or choose exact_match",
        )
    ]


def _regex_metric_has_pattern(spec: ProjectSpec) -> list[Problem]:
    if "regex" not in {spec.evaluate.metric, *spec.evaluate.metrics} or spec.evaluate.graders.regex.pattern:
        return []
    return [("evaluate.graders.regex.pattern", "the metric regex has no pattern", "give one, or choose another metric")]


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


def find_problems(spec: ProjectSpec) -> list[Problem]:
    """All problems of a resolved project file that no single section can see."""
    checks = (
        _budget_holds_a_row,
        _json_metric_has_json,
        _regex_metric_has_pattern,
        _best_metric_is_known,
        _average_means_something,
        _prompts_have_dev_rows,
        _chunks_bring_new_tokens,
        _base_can_be_compared,
        _score_head_has_an_adapter,
        adapter_problems,
    )
    return [problem for check in checks for problem in check(spec)]
