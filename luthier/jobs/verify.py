"""`luthier verify`: is this still what was made, and what was it made from? The whole chain, link by link.

Exit code 0 when every link that can be checked holds, 20 when one is broken (with --strict also when one is absent).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from luthier.errors import ArtifactError, ConfigError
from luthier.jobs import console
from luthier.jobs.chain import STAGE_FOLDER, Chain, Link
from luthier.store.publish import MANIFEST, digest_file, read_manifest

BROKEN = 20


def verify(
    folder: Path, *, base: Path | None = None, data: Path | None = None, strict: bool = False, as_json: bool = False
) -> int:
    """Checks one stage or published folder, or the newest chain of a run folder. Returns the exit code."""
    for given in (folder, base, data):
        if given is not None and not given.is_dir():
            raise ConfigError(f"{given}: no such folder", hint="give a stage's folder, a published one, or output_dir")
    chain = Chain(base=base, data=data)
    tips, others = _tips(folder.resolve())
    for tip in tips:
        chain.walk(tip)
    links = list(dict.fromkeys(chain.links))
    wrong = [link for link in links if link.status == "broken" or (strict and link.status == "absent")]
    if as_json:
        text = json.dumps(_as_json(tips, links, bool(wrong)), indent=1)
        console.console.print(text, markup=False, soft_wrap=True)
    else:
        _tell(tips, others, links, wrong)
    return BROKEN if wrong else 0


def _tips(folder: Path) -> tuple[list[Path], list[str]]:
    """(where to start, names of older stages that are left out)."""
    stages = [path for path in sorted(folder.iterdir()) if STAGE_FOLDER.fullmatch(path.name) and path.is_dir()]
    if (folder / MANIFEST).is_file() or not stages:
        return [folder], []
    unreadable, parents, made_at = [], set(), {}
    for stage in stages:
        try:
            manifest = read_manifest(stage)
        except ArtifactError:
            unreadable.append(stage)
            continue
        parents |= {link["folder"] for link in manifest.get("provenance", {}).get("parents", {}).values()}
        made_at[stage] = (stage / MANIFEST).stat().st_mtime_ns
    ends = [stage for stage in made_at if stage.name not in parents]
    newest = max(ends, key=lambda stage: made_at[stage], default=None)
    rest = [stage.name for stage in ends if stage != newest]
    return unreadable + ([newest] if newest else []), rest


def _tell(tips: list[Path], others: list[str], links: list[Link], wrong: list[Link]) -> None:
    for tip in tips:
        console.headline("verify", console.shown(tip))
    for stage in dict.fromkeys(link.stage for link in links):
        own = [link for link in links if link.stage == stage]
        counts = {status: sum(link.status == status for link in own) for status in ("ok", "broken", "absent")}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        console.line(f"{stage}: {told or 'nothing to check'}")
    for link in links:
        if link.status == "note":
            console.line(f"note: {link.what}")
        elif link.status == "absent":
            console.warn(f"not checked, it is not here: {link.what}")
            console.line(f"    recorded {link.expected}")
    if others:
        console.line(f"older stages, not looked at: {', '.join(others)} (name one to check it)")
    for link in wrong:
        console.line(f"broken: {link.what}", "red")
        console.line(f"    expected {link.expected}")
        console.line(f"    found    {link.found}")
    if not wrong:
        console.line(f"every link holds; the sha256 of its {MANIFEST} stands for all of it:", "green")
        for tip in tips:
            console.line(f"    {digest_file(tip / MANIFEST)}")


def _as_json(tips: list[Path], links: list[Link], broken: bool) -> dict[str, object]:
    return {
        "folders": [str(tip) for tip in tips],
        "whole": not broken,
        "links": [dataclasses.asdict(link) for link in links],
    }
