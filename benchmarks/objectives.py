"""Every objective from its project file to an adapter, on the embedded SmolLM2-135M: what it moves, memory and speed.

    python benchmarks/objectives.py [--only NAME,...] [--work DIR] [--again] [--table] [--base NAME|FOLDER]

An objective is one `luthier train` of its own process on rows of objective_rows.py (160 orders, 64 held out), LoRA of
rank 8, float32, one thread. Its held-out measure is taken on the base and on the tune, row by row, and the difference
is shown with its 95% interval. `grpo` and `ppo` start from `start`, a model tuned on a log whose JSON is mostly broken,
and stand beside `start, longer`: the same rows again, for at least as many tokens. Then this side and TRL's trainer
take three steps each, one side after the other, once, on the same rows: tokens a second of processor time, of every
step but the first; where the model answers itself, the tokens that it says are counted. Results are kept in
benchmarks/results/objectives.json, one objective after the other; what stands there is not run again. The table in
docs/objectives.md is written from them (--table: that alone).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from objective_rows import PAIRED, SCHEMA, SETTINGS, write_project  # noqa: E402
from objective_trl import SAMPLED, TRAINERS, run_trl  # noqa: E402

from luthier.adapters.handle import AdaptedModel  # noqa: E402
from luthier.bases.resolve import model_in  # noqa: E402
from luthier.config.load import Project, load_project  # noqa: E402
from luthier.data.stored import read_rows  # noqa: E402
from luthier.engine import checkpoint  # noqa: E402
from luthier.engine.averages import put  # noqa: E402
from luthier.engine.inputs import batches_of  # noqa: E402
from luthier.engine.loop import train  # noqa: E402
from luthier.engine.step import batch_sums, loss_of_step  # noqa: E402
from luthier.graders.grader import Task  # noqa: E402
from luthier.graders.registry import grader  # noqa: E402
from luthier.jobs.course import Course, open_course  # noqa: E402
from luthier.jobs.local import set_threads  # noqa: E402
from luthier.jobs.objective import Examples, read_examples  # noqa: E402
from luthier.jobs.opened import open_base  # noqa: E402
from luthier.jobs.prepare import prepare_stage  # noqa: E402
from luthier.jobs.session import Session, open_adapted  # noqa: E402
from luthier.losses.loss import count_units  # noqa: E402
from luthier.rollouts.round import read_round  # noqa: E402
from luthier.stats.intervals import mean_interval  # noqa: E402
from luthier.store.publish import read_manifest  # noqa: E402
from luthier.types import Row  # noqa: E402

RESULT, PAGE = ROOT / "benchmarks/results/objectives.json", ROOT / "docs/objectives.md"
MARKS = ("<!-- measured -->\n", "<!-- end of measured -->\n")
BASE = "smollm2-135m"
STEPS, ROWS_PER_STEP, ANSWERS_PER_STEP = 3, 8, 32
BUILT = ("sft", "start")  # teacher of distill and gkd; base of grpo and ppo
JSON = ("start", "start, longer", "grpo", "ppo")
FIGURES = {"kto": "reward_accuracy", "reward": "reward_accuracy", "classify": "accuracy", "regress": "absolute_error"}
MEASURES = {
    "sft": "answers as asked, greedy", "continued": "nats a token", "distill": "KL(teacher, student), nats a token",
    "gkd": "KL(student, teacher) in own answers, nats a token", "kto": "liked and disliked told apart",
    "reward": "pairs ranked right", "classify": "right class", "regress": "absolute error",
    **dict.fromkeys(("dpo", "orpo", "simpo", "cpo"), "pairs ranked right"),
    **dict.fromkeys(JSON, "valid JSON, at temperature 1"),
}  # fmt: skip
HEADERS = (
    "objective", "held-out measure", "before", "after", "difference (95%)", "steps, tokens", "GiB", "tokens/s",
    "TRL's", "ratio",
)  # fmt: skip
LESS_IS_BETTER = ("continued", "distill", "gkd", "regress")


@dataclass(frozen=True)
class Opened:
    """What `opened` gives. prepared, base: folders."""

    project: Project
    course: Course
    adapted: AdaptedModel
    examples: Examples
    prepared: Path
    base: Path
    work: Path


class Failed(Exception):
    """A process that did not end well, with its last words."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="objectives, by commas; default all of them")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-objectives")
    parser.add_argument(
        "--base", default=BASE, help="another base: its results go to --results, and no table is written"
    )
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--again", action="store_true", help="also what stands already")
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "JOB"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if (given.base != BASE) != (given.results != RESULT) and not given.child:
        parser.error("--base and --results go together: the table is of the embedded base alone")
    if given.child:
        child(*given.child)
        return 0
    failed = 0
    for name in () if given.table else [name for name in given.only.split(",") if name] or list(SETTINGS):
        if name in read_results(given.results) and not given.again:
            continue
        try:
            found = measure(name, given.work, given.base)
        except Failed as told:  # the others can still be measured
            print(told, file=sys.stderr, flush=True)
            failed += 1
            continue
        given.results.write_text(json.dumps(read_results(given.results) | {name: found}, indent=1) + "\n")
        print(name, json.dumps(found), flush=True)
    if given.base != BASE:
        return 1 if failed else 0
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(
        head + MARKS[0] + table(read_results(given.results)) + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8"
    )
    return 1 if failed else 0


def read_results(path: Path) -> dict[str, Any]:
    """What stands, by objective."""
    return json.loads(path.read_text()) if path.exists() else {}


def measure(name: str, work: Path, base: str) -> dict[str, Any]:
    """Trains by the command line, then measures in processes of their own."""
    path = write_project(work / name.replace(", ", "-"), name, base)
    _luthier("build" if name in BUILT else "train", path)
    stage = stage_of(path)
    facts = read_manifest(stage)["facts"]
    rows_per_step = ANSWERS_PER_STEP if name in SAMPLED else ROWS_PER_STEP
    job = {"kind": name, "path": str(path), "stage": str(stage), "steps": STEPS, "rows_per_step": rows_per_step}
    ours = in_own_process(__file__, "ours", job)
    found = {key: facts[key] for key in ("steps", "best_step", "tokens", "peak_bytes", "num_trainable")}
    found |= effect(name, facts, ours) | {"speed": {"ours": ours["speed"]}}
    if name in TRAINERS:
        theirs = in_own_process(
            __file__, "trl", job | {"rows": ours["rows"], "teacher": str(teacher(path)), "base": ours["base"]}
        )
        speed = speed_of(theirs["ends"], theirs["tokens"] or ours["step_tokens"])
        found["speed"] |= {"trl": speed, "ratio": ours["speed"] / speed, "trl_peak_bytes": theirs["peak_bytes"]}
    return found


def _luthier(verb: str, path: Path) -> None:
    command = [sys.executable, "-m", "luthier", verb, "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise Failed(f"luthier {verb} -c {path}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def in_own_process(script: str, what: str, job: dict[str, Any]) -> dict[str, Any]:
    """What `script --child WHAT JOB` finds. Raises Failed with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "job.json", Path(folder) / "out.json"
        path.write_text(json.dumps(job | {"out": str(out)}))
        command = [sys.executable, script, "--child", what, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{what}, {job['kind']}: failed\n{done.stderr[-3000:]}")
        return json.loads(out.read_text())


def child(what: str, path: str) -> None:
    """Entry of a child process."""
    job = json.loads(Path(path).read_text())
    leave(job, run_ours(job) if what == "ours" else run_trl(job))


def leave(job: dict[str, Any], found: dict[str, Any]) -> None:
    """Writes down, for `in_own_process`, what was found, and the peak memory of this process."""
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(job["out"]).write_text(json.dumps(found))


def stage_of(path: Path) -> Path:
    """The one train stage of a project."""
    (folder,) = (one for one in path.parent.glob("out/train-*") if one.suffix != ".work")
    return folder


def teacher(path: Path) -> Path | None:
    """The model folder that the project's teacher is."""
    name = load_project(path).spec.loss.teacher
    return model_in(path.parent / name) if name else None


def effect(name: str, facts: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The held-out measure before and after, and the difference with its 95% interval: paired by row, but for gkd,
    whose two intervals are put together as if the rows were not the same."""
    if name in PAIRED and name != "reward":
        ranking = facts["ranking"]
        over, means = ranking["over_base"], [ranking[who]["mean"] for who in ("base", "tuned")]
        difference, num_rows = [over["mean"], over["low"], over["high"]], ranking["pairs"]
    elif name == "gkd":
        best = next(record for record in facts["history"] if record["step"] == facts["best_step"])
        both = (facts["dev_before"], best)
        means, num_rows = [one["teacher_kl"] for one in both], 64
        half = sum((one["teacher_kl_high"] - one["teacher_kl"]) ** 2 for one in both) ** 0.5
        difference = [means[1] - means[0], means[1] - means[0] - half, means[1] - means[0] + half]
    else:
        pairs = list(zip(ours["before"], ours["after"], strict=True))
        means, num_rows = [sum(one) / len(pairs) for one in zip(*pairs, strict=True)], len(pairs)
        difference = [means[1] - means[0], *mean_interval([after - before for before, after in pairs])]
    return {"before": means[0], "after": means[1], "difference": difference, "held_out": num_rows}


@contextmanager
def opened(project: Project, work: Path, dtype: str, before: dict[str, float]) -> Iterator[Opened]:
    """An objective on the adapted base, at its first step. before: the held-out figures, which are not taken again."""
    work.mkdir()
    (work / "before.json").write_text(json.dumps(before))
    base = open_base(project)
    prepared = prepare_stage(project, base)
    examples = read_examples(project, prepared)
    session = Session(project, base, prepared, work, {}, 0, time.perf_counter())
    set_threads(project)
    model, adapted, dtype = open_adapted(session, examples, dtype)
    with open_course(session, model, adapted, examples, dtype) as course:
        yield Opened(project, course, adapted, examples, prepared.folder, base.base.folder, work)


def run_ours(job: dict[str, Any]) -> dict[str, Any]:
    """The measure on the base and on the tune, and a few steps of this side."""
    project = load_project(Path(job["path"]))
    kind, stage = job["kind"], Path(job["stage"])
    facts = read_manifest(stage)["facts"]
    known = facts["dev_before"] or {"loss": 0.0}
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(project, Path(folder) / "work", "float32", known) as at,
    ):
        held_out = read_rows(at.prepared, "dev")
        before = values_of(kind, at, held_out)
        found = take_steps(at, job["steps"])
        weights = checkpoint.load_weights(checkpoint.folder_of(stage / "checkpoints", facts["best_step"]))
        trained = {name: p for name, p in at.adapted.model.named_parameters() if p.requires_grad}
        put(trained, {name: weights[name] for name in trained})
        after = values_of(kind, at, held_out)
        rows = first_rows(at, job["steps"] * job["rows_per_step"])
    return found | {"before": before, "after": after, "rows": rows, "base": str(at.base)}


def first_rows(at: Opened, count: int) -> list[dict[str, Any]]:
    """The first rows as TRL is given them."""
    return [
        {
            "prompt": row.prompt, "answer": row.answer, "text": row.text, "label": row.label,
            "rejected": row.rejected[-1]["content"] if row.rejected else "",
        }
        for row in read_rows(at.prepared, "train")[:count]
    ]  # fmt: skip


def values_of(kind: str, at: Opened, rows: list[Row]) -> list[float]:
    """The measure of every held-out row; none where the run itself tells it."""
    if kind == "gkd" or (kind in PAIRED and kind != "reward"):
        return []
    if kind in FIGURES or kind in ("continued", "distill"):
        return losses_of(kind, at)
    said = at.course.make_sampler().sample(
        [row.prompt for row in rows], max_new_tokens=32, temperature=1.0 if kind in JSON else 0.0, seed=0
    )
    if kind in JSON:
        task, valid = Task(SCHEMA), grader("json_valid")
        return [float(valid.grade(one.text, row.answer, task)) for one, row in zip(said, rows, strict=True)]
    return [float(one.text.strip() == row.answer) for one, row in zip(said, rows, strict=True)]


def losses_of(kind: str, at: Opened) -> list[float]:
    """The objective's own figure, or its loss, of every held-out row."""
    model, dev, values = at.adapted.model, at.examples.dev, []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packs = [[index] for index in range(len(dev))]
        batches = batches_of(dev, packs, at.course.objective.lay_out, torch.device("cpu"))
        loss = loss_of_step(model, at.course.objective.loss, batches)
        for batch in batches:
            sums = batch_sums(model, loss, batch)
            own = sums.figures[FIGURES[kind]].tolist() if kind in FIGURES else None
            values += own or [sums.total.item() / count_units(loss, batch)]
    model.train(was_training)
    return values


def take_steps(at: Opened, steps: int) -> dict[str, Any]:
    """A few steps on the first rows: tokens a second of processor time, and the tokens of each step."""
    kind, rows, ends = at.project.spec.loss.kind, at.examples.train, []
    groups = [list(range(start, start + ROWS_PER_STEP)) for start in range(0, steps * ROWS_PER_STEP, ROWS_PER_STEP)]
    online = at.project.spec.loss.is_online
    spec = at.project.spec.train.model_copy(update={"max_steps": steps, "num_epochs": 1, "learning_rate": 1e-4})
    run_dir = at.work / "steps"
    train(
        at.adapted.model, at.course.objective.loss, spec, train_set=rows, dev_set=None,
        make_batch=at.course.objective.lay_out, plan_epoch=at.course.plan_epoch if online else lambda *_: groups,
        run_dir=run_dir, adapted=at.adapted, supply=at.course.supply, notice=lambda _: None,
        progress=lambda *_, **__: ends.append((time.process_time(), time.perf_counter())),
    )  # fmt: skip
    log = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    if not all(line["grad_norm"] > 0 for line in log if line["kind"] == "train"):
        raise SystemExit(f"{kind}: a gradient norm is not above zero: a run that does not learn is no measurement")
    if online:
        rounds = [read_round(path) for path in sorted((at.work / "rollouts").iterdir())]
        tokens = [sum(len(answer.ids) for answer in one[0]) for one in rounds if one]
    else:
        tokens = [sum(rows[index].num_tokens for index in group) for group in groups]
    return {"speed": speed_of(ends, tokens), "step_tokens": tokens, "ends": ends}


def speed_of(ends: list, tokens: list[int]) -> float:
    """Tokens a second of processor time, over all steps but the first."""
    return sum(tokens[1 : len(ends)]) / (ends[-1][0] - ends[0][0])


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "Made by `python benchmarks/objectives.py` (its head says how): SmolLM2-135M, 160 orders to learn from "
        "and 64 held out, LoRA of rank 8, float32, one thread. Tokens a second are of processor time. TRL's trainer "
        "takes the same rows in padded batches, float32, no recompute, its reference computed beforehand; this is not "
        "its best of a search (`benchmarks/dpo_vs_trl.py` is). none: TRL has no such trainer.\n\n",
        f"| {' | '.join(HEADERS)} |\n",
        f"|{'---|' * len(HEADERS)}\n",
    ]
    for name in SETTINGS:
        if name not in results:
            continue
        one = results[name]
        gain, low, high = one["difference"]
        speed = one["speed"]
        theirs = (f"{speed['trl']:.0f}", f"{speed['ratio']:.2f}") if "trl" in speed else ("none", "")
        cells = [
            f"`{name}`", MEASURES[name], f"{one['before']:.3f}", f"{one['after']:.3f}",
            f"{gain:+.3f} ({low:+.3f} to {high:+.3f})", f"{one['steps']}, {one['tokens']:,}",
            f"{one['peak_bytes'] / 2**30:.2f}", f"{speed['ours']:.0f}", *theirs,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |\n")
    still = [name for name, one in results.items() if not has_moved(name, one["difference"])]
    lines.append(f"\nNot beyond its interval: {', '.join(still) or 'none'}.\n")
    missing = [name for name in SETTINGS if name not in results]
    if missing:
        lines.append(f"Not measured yet: {', '.join(missing)}.\n")
    return "".join(lines)


def has_moved(name: str, difference: list[float]) -> bool:
    """Whether the measure is better than before by more than its interval."""
    _, low, high = difference
    return high < 0 if name in LESS_IS_BETTER else low > 0


if __name__ == "__main__":
    sys.exit(main())
