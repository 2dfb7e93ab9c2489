"""The parts of the verdict report that other stages know: where the data came from, the training curve, the
artefacts."""

from __future__ import annotations

import json

from luthier.jobs import planned
from luthier.jobs.artefacts import artefacts_of
from luthier.jobs.console import duration
from luthier.jobs.stage import Stage
from luthier.jobs.waste import HEADERS, waste_rows
from luthier.pages.charts import lines
from luthier.pages.page import Section, join, paragraph, table, tiles
from luthier.store.metrics import MetricsLog


def report_sections(prepared: Stage, trained: Stage, built: Stage) -> list[Section]:
    """Data, training and artefacts, in this order."""
    return [_data(prepared), _training(trained), _artefacts(built)]


def _data(prepared: Stage) -> Section:
    summary = json.loads((prepared.folder / "summary.json").read_text(encoding="utf-8"))
    rows = [(file["file"], file["rows_read"], file["rows_kept"], file["rows_quarantined"]) for file in summary["files"]]
    proof = summary["proof"]
    return Section(
        "Data",
        table(("file", "rows read", "kept", "quarantined"), rows)
        + paragraph(
            f"Split by group: {', '.join(f'{k} {v}' for k, v in summary['splits'].items())}. Near-duplicate pairs that "
            f"straddle a split: {proof['straddling_edges']}. Full report: report.html of {prepared.folder.name}."
        ),
    )


def _training(trained: Stage) -> Section:
    records = MetricsLog(trained.folder / "metrics.jsonl").read()
    rounds = [(r["step"], r["reward"]) for r in records if r["kind"] == "rollout" and "reward" in r]
    apart = [(r["step"], r["teacher_kl"]) for r in records if r["kind"] == "dev" and "teacher_kl" in r]
    if rounds:  # an online run: its loss is near 0 whatever it learns
        held_out = [(r["step"], r["reward"]) for r in records if r["kind"] == "dev" and "reward" in r]
        curves, unit = {"reward of a round": rounds, "held-out reward": held_out}, "reward"
    elif apart:  # its loss is over other answers at each round
        curves, unit = {"held-out KL from the teacher, in its own answers": apart}, "nats per token"
    else:
        losses = {kind: [(r["step"], r["loss"]) for r in records if r["kind"] == kind] for kind in ("train", "dev")}
        curves, unit = {"training loss": losses["train"], "dev loss": losses["dev"]}, "loss (nats per token)"
        curves["rows trained on, judged as the dev rows are"] = [
            (r["step"], r["train_loss"]) for r in records if "train_loss" in r
        ]
    facts = trained.facts
    figures = [
        ("steps", facts["steps"]),
        ("tokens seen", f"{facts['tokens']:,}"),
        ("tokens that carried loss", f"{facts['trained_tokens']:,}"),
        ("training time", duration(facts["seconds"])),
        ("trainable parameters", f"{facts['num_trainable']:,} ({100 * facts['share_trainable']:.2f}%)"),
        ("peak memory", f"{facts['peak_bytes'] / 2**30:.2f} GiB"),
    ]
    chart = lines({k: v for k, v in curves.items() if v}, x_label="optimizer step", y_label=unit)
    if gaps := [(r["step"], r["gap"]) for r in records if "gap" in r]:
        words = "dev loss less that of rows trained on"
        chart = join(chart, lines({"gap": gaps}, "optimizer step", words, title="Generalisation gap"))
    spent = waste_rows(facts)
    ahead = planned.planned_rows(facts)
    tables = (table(planned.HEADERS, ahead) if ahead else "") + (table(HEADERS, spent) if spent else "")
    return Section("Training", tiles(figures) + chart + tables)


def _artefacts(built: Stage) -> Section:
    rows = []
    for artefact in artefacts_of(built):
        if not artefact.records:
            unread = f"withheld: {'; '.join(artefact.reasons)}"
            rows.append((artefact.file_name, f"{artefact.size_bytes / 1e6:.0f} MB", "-", "-", "-", "-", unread))
        for record in artefact.records:
            metrics = record.metrics
            rows.append(
                (
                    artefact.file_name,
                    f"{artefact.size_bytes / 1e6:.0f} MB",
                    record.reader,
                    f"{metrics.kl_mean:.1e}",
                    f"{metrics.top1:.1%}",
                    f"{record.threshold['kl']:g} / {record.threshold['top1']:.0%}",
                    "passed" if record.passed else f"withheld: {'; '.join(record.reasons)}",
                )
            )
    headers = ("artefact", "size", "read by", "mean KL", "same top-1", "limits", "parity with the adapter")
    return Section("Artefacts", table(headers, rows))
