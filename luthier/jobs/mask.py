"""`luthier mask`: which tokens carry loss, coloured, and the table of proof obligations."""

from __future__ import annotations

from rich.text import Text

from luthier.chat.proof import prove
from luthier.chat.show import mask_view
from luthier.config.load import Project
from luthier.data.stored import read_rows
from luthier.errors import TemplateError
from luthier.jobs import console
from luthier.jobs.opened import open_base
from luthier.jobs.prepare import prepare_stage

TRAINED, MASKED = "bold black on green", "dim"


def mask(project: Project, *, num_rows: int) -> None:
    """Prints `num_rows` training rows token by token, then the obligations. Raises TemplateError when one fails."""
    opened = open_base(project)
    rows = read_rows(prepare_stage(project, opened).folder, "train")
    for row in rows[:num_rows]:
        console.headline("row", f"{row.source}:{row.line}")
        text = Text()
        for token, trained in mask_view(opened.codec, row):
            # Brackets mark trained tokens where there are no colours.
            shown = f"[{token}]" if trained and not console.console.is_terminal else token
            text.append(shown, TRAINED if trained else MASKED)
        console.console.print(text, markup=False)
        console.console.print()
    proof = prove(opened.codec, rows)
    console.table(
        "",
        ("obligation", "result", "checked", "what"),
        [(o.id, "holds" if o.passed else "FAILS", str(o.num_checked), o.detail) for o in proof.obligations],
    )
    if not proof.passed:
        raise TemplateError(
            "the loss mask is not proved", hint="the table names the obligation that fails, and the row"
        )
