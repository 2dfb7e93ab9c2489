"""The chain of manifests, walked back link by link: from a stage or a published folder to raw files and base.

Every link is told as it was found: ok, broken (file, expected, found), or absent (recorded, but the thing itself is not
here). What is checked: the manifest's seal and every file's sha256; the stage's key, computed anew from the inputs that
it records; that each input is the content of the stage it came from; that what was published is byte for byte what was
built and trained; raw data files, tokenizer and base against their recorded sha256. A manifest that does not match its
seal is not believed any further.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from luthier.bases.derived import write_derived
from luthier.bases.folder import base_digest, fresh_digests
from luthier.bases.resolve import locate_base
from luthier.config.model import ModelSpec
from luthier.errors import ArtifactError, BaseModelError, LuthierError
from luthier.jobs.stage import KEY_CHARS, content_digest
from luthier.ship.publish import LINEAGE
from luthier.store.provenance import (
    Parent,
    Pin,
    Provenance,
    environment,
    environment_changes,
    read_provenance,
    stage_key,
)
from luthier.store.publish import (
    MANIFEST,
    Difference,
    differences,
    digest_file,
    digest_json,
    digest_text,
    read_manifest,
    render_manifest,
    seal,
)

# What `luthier run` leaves in output_dir; profile-* and *.work are no stages.
STAGE_FOLDER = re.compile(rf"(?:prepare|train|answers|build|evaluate|published)-[0-9a-f]{{{KEY_CHARS}}}")
_COPIED_FROM = {"adapter": "train", "merged": "build"}  # parts of a published folder and the stage that they are from
Status = Literal["ok", "broken", "absent", "note"]


@dataclass(frozen=True)
class Link:
    """One thing that was checked. stage: whose manifest tells it; expected, found: digests or words."""

    status: Status
    stage: str
    what: str
    expected: str = ""
    found: str = ""


@dataclass(frozen=True)
class Told:
    """A manifest and its provenance, read."""

    manifest: dict[str, Any]
    made: Provenance

    @property
    def digest(self) -> str:
        """Digest of the files that it names."""
        return content_digest(self.manifest)


@dataclass
class Chain:
    """Walks manifests. base, data: where to look for the base and the raw files, instead of the recorded places."""

    base: Path | None = None
    data: Path | None = None
    links: list[Link] = field(default_factory=list)
    _walked: dict[str, Told | None] = field(default_factory=dict)

    def walk(self, folder: Path) -> None:
        """Checks the stage in `folder`, all that it was made from, and the sources."""
        told = self._stage(folder, {})
        if told is not None:
            self._raw_files(folder, told.made)
            self._base_files(folder, told.made)
            changes = environment_changes(told.made.environment, environment())
            self.links += [Link("note", folder.name, f"made with {change}") for change in changes]

    def _stage(self, folder: Path, lineage: Mapping[str, Told]) -> Told | None:
        """Checks one standing folder and its ancestors; None where its manifest cannot be believed."""
        name = folder.name
        if name in self._walked:
            return self._walked[name]
        self._walked[name] = None
        try:
            manifest = read_manifest(folder)
            told = Told(manifest, read_provenance(manifest))
        except ArtifactError as error:
            self._add("broken", name, f"{folder / MANIFEST}: {error}", "a whole manifest", "none")
            return None
        wrong = {one.path: one for one in differences(folder)}
        self._files(folder, manifest, wrong)
        if folder / MANIFEST in wrong:
            return None
        self._walked[name] = told
        self.links += _record(name, told)
        carried = {} if folder / LINEAGE in wrong else _read_lineage(folder)
        for given_as, link in told.made.parents.items():
            self._parent(folder, told, given_as, link, carried or lineage)
        self.links += _copies(name, told, carried)
        return told

    def _files(self, folder: Path, manifest: dict[str, Any], wrong: Mapping[Path, Difference]) -> None:
        """Every file of the folder, those that the manifest does not name included."""
        for one in wrong.values():
            self._add("broken", folder.name, str(one), one.expected, one.found)
        names = {entry["name"] for entry in manifest["files"]}
        self.links += [Link("ok", folder.name, f"file {folder / n}") for n in sorted(names) if folder / n not in wrong]
        for path in sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink()):
            if path.relative_to(folder).as_posix() not in names | {MANIFEST}:
                self._add("broken", folder.name, f"{path}: the manifest knows no such file", "nothing", "a file")

    def _parent(self, folder: Path, child: Told, given_as: str, link: Parent, lineage: Mapping[str, Told]) -> None:
        """Checks that what `child` names as its input is the content of the stage it came from."""
        name, beside = link.folder, folder.parent / link.folder
        told, what = lineage.get(name), f"input {given_as} of {folder.name} is {name}"
        if told is None and not beside.is_dir():
            self._add("absent", folder.name, f"{what}: no such folder beside it", link.digest, "nothing")
            return
        if told is not None:
            self._content(folder.name, f"{what}, as {LINEAGE} tells it", child, told, link)
        if beside.is_dir():
            standing = self._stage(beside, lineage)
            if standing is not None:
                self._content(folder.name, what, child, standing, link)
        elif told is not None and name not in self._walked:
            self._walked[name] = told
            self.links += _record(name, told)
            for next_as, next_link in told.made.parents.items():
                self._parent(beside, told, next_as, next_link, lineage)

    def _content(self, stage: str, what: str, child: Told, parent: Told, link: Parent) -> None:
        self.links.append(_equal(stage, what, link.digest, parent.digest))
        if parent.digest == link.digest and digest_text(render_manifest(parent.manifest)) != link.manifest_sha256:
            self._add("note", stage, f"{link.folder} was built again since, with the same content")
        for pin in ("base", "tokenizer", "data"):
            ours, theirs = getattr(child.made, pin), getattr(parent.made, pin)
            if ours and theirs:
                what = f"{pin} as {stage} and {link.folder} record it"
                self.links.append(_equal(stage, what, _digest_of(ours), _digest_of(theirs)))

    def _raw_files(self, folder: Path, made: Provenance) -> None:
        """Raw data files as they lie on this machine."""
        project = self._project(folder, made)
        for name, sha256 in made.data.files.items():
            path = project / name  # an absolute name stays what it is
            if path.is_file():
                self.links.append(_equal(folder.name, f"raw file {path}", sha256, digest_file(path)))
            else:
                self._add("broken" if self.data else "absent", folder.name, f"raw file {path}", sha256, "nothing")

    def _base_files(self, folder: Path, made: Provenance) -> None:
        """The base's files as they lie on this machine: one changed, missing or added is named."""
        if made.base is None:
            return
        where = self.base or locate_base(made.base.name, self._project(folder, made))
        if where is None:
            self._add("absent", folder.name, f"base {made.base.name}", made.base.digest, "nothing")
            return
        try:
            found = fresh_digests(where)
        except BaseModelError as error:
            self._add("broken", folder.name, f"base: {error}", made.base.digest, "no model")
            return
        told = made.base.made_from or made.base.files
        for name in sorted({*told, *found}):
            pair = told.get(name, "no such file"), found.get(name, "nothing")
            self.links.append(_equal(folder.name, f"base file {where / name}", *pair))
        if made.base.changes and told == found:
            self._derived(folder.name, where, made.base)

    def _derived(self, stage: str, source: Path, base: Pin) -> None:
        """What section `model` made of the base, made once more and held against what was trained on."""
        with tempfile.TemporaryDirectory(prefix="luthier-") as scratch:
            try:
                write_derived(source, Path(scratch), ModelSpec.model_validate(base.changes))
                digest = base_digest(fresh_digests(Path(scratch)))
            except (LuthierError, ValidationError) as error:
                digest = str(error)
        changes = ", ".join(base.changes)
        self.links.append(_equal(stage, f"base with {changes}, made once more from {source}", base.digest, digest))

    def _project(self, folder: Path, made: Provenance) -> Path:
        return self.data or (folder.parent / made.project).resolve()

    def _add(self, status: Status, stage: str, what: str, expected: str = "", found: str = "") -> None:
        self.links.append(Link(status, stage, what, expected, found))


def _equal(stage: str, what: str, expected: str, found: str) -> Link:
    return Link("ok" if expected == found else "broken", stage, what, expected, found)


def _digest_of(pin: Pin) -> str:
    return digest_json(pin.files)


def _record(name: str, told: Told) -> Iterator[Link]:
    """What a manifest says of itself: its key, and that its parts do not contradict each other."""
    made, inputs = told.made, told.manifest.get("inputs") or {}
    key = stage_key(made.stage, made.version, inputs)
    yield _equal(name, f"key of {name}, computed anew from its inputs", made.key, key)
    right = f"{made.stage}-{key[:KEY_CHARS]}"
    if STAGE_FOLDER.fullmatch(name):
        yield _equal(name, f"{name} is named by its stage and key", right, name)
    else:
        yield Link("note", name, f"the folder {name} was called {right}")
    for given_as, link in made.parents.items():
        yield _equal(name, f"input {given_as} of {name} is its parent's digest", str(inputs.get(given_as)), link.digest)
    for what, pin in (("base", made.base), ("tokenizer", made.tokenizer)):
        if pin is not None:
            yield _equal(name, f"digest of the {what}'s files", pin.digest, _digest_of(pin))
            if what in inputs:
                yield _equal(name, f"input {what} of {name}", str(inputs[what]), pin.digest)
    if "files" in inputs:
        yield _equal(name, f"raw files of {name}", digest_json(inputs["files"]), _digest_of(made.data))
    if made.base is not None:
        theirs = {file: made.base.files.get(file) for file in made.tokenizer.files}
        yield _equal(name, "the tokenizer's files are the base's", digest_json(theirs), _digest_of(made.tokenizer))


def _read_lineage(folder: Path) -> dict[str, Told]:
    """Manifests that a published folder carries with it, by folder name; only those that match their own seal."""
    try:
        lineage = json.loads((folder / LINEAGE).read_bytes())
        return {
            name: Told(manifest, read_provenance(manifest))
            for name, manifest in lineage.items()
            if manifest.get("seal") == seal(manifest)
        }
    except (OSError, ValueError, AttributeError, ArtifactError):
        return {}


def _copies(name: str, told: Told, lineage: Mapping[str, Told]) -> Iterator[Link]:
    """A published folder's models against the stages that made them: parity and verdict were measured there."""
    by_stage = {one.made.stage: one.manifest for one in lineage.values()}
    for entry in told.manifest["files"] if told.made.stage == "published" else ():
        part = entry["name"].split("/")[0]
        source = _COPIED_FROM.get(part, "build" if part.endswith(".gguf") else "")
        if source in by_stage:
            made = {one["name"]: one["sha256"] for one in by_stage[source]["files"]}
            what = f"{entry['name']} of {name} is the one of stage {source}"
            yield _equal(name, what, made.get(entry["name"], "no such file"), entry["sha256"])
