"""What goes out, what is withheld and says so, and the card."""

from __future__ import annotations

import json

import pytest
import yaml

from luthier.errors import ArtifactError
from luthier.ship.artefact import Artefact
from luthier.ship.card import CardFacts, model_card
from luthier.ship.parity import ParityMetrics, judge
from luthier.ship.publish import publish
from luthier.store.publish import read_manifest, verify_folder

FACTS = CardFacts(
    name="tickets | <b>v1</b>",
    base_name="smollm2-135m",
    base_digest="b" * 64,
    base_licence="Apache-2.0",
    data_digest="d" * 64,
    config_digest="c" * 64,
    goal={"target_behaviour": "tickets to JSON", "success_criteria": ["a", "b"], "owner": ""},
    training={"steps": 120, "loss": 0.123456789},
    verdict={"decision": "SHIP_TUNE", "details": {"nested": 1}},
    limits=["English only"],
)


def record(name: str, kl: float, *, limit: float = 0.01):
    metrics = ParityMetrics(kl, 2 * kl, 3 * kl, 0.995, 100, 8, prompts_equal=1.0, greedy_match=0.9)
    return judge(name, "luthier", metrics, {"kl": limit, "top1": 0.97})


@pytest.fixture
def built(tmp_path):
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    for folder in (merged, adapter):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "manifest.json").write_text("{}")
    for name in ("q8", "q4"):
        (tmp_path / f"{name}.gguf").write_bytes(name.encode())
    artefacts = [
        Artefact("merged", merged, (record("merged", 1e-6),)),
        Artefact("gguf-q8_0", tmp_path / "q8.gguf", (record("gguf-q8_0", 1e-3),), ("a note on the window",)),
        Artefact("gguf-q4_1", tmp_path / "q4.gguf", (record("gguf-q4_1", 0.2, limit=0.1),)),
    ]
    return artefacts, adapter


def test_only_what_passed_goes_out(built, tmp_path):
    artefacts, adapter = built
    out = tmp_path / "out"
    report = publish(
        out, artefacts, adapter=adapter, facts=FACTS, modelfile=lambda name: f"FROM ./{name}\n", inputs={"a": "b"}
    )
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "merged/weights.safetensors",
        "model-q8_0.gguf",
        "adapter/weights.safetensors",
        "Modelfile",
        "README.md",
        "parity.json",
        "lineage.json",
        "manifest.json",
    }
    assert report.published == ("gguf-q8_0", "merged") and report.modelfile_for == "model-q8_0.gguf"
    assert "2.00e-01 is above 1e-01" in report.withheld["gguf-q4_1"][0]
    assert (out / "Modelfile").read_text() == "FROM ./model-q8_0.gguf\n"
    assert verify_folder(out) == [] and read_manifest(out)["inputs"] == {"a": "b"}
    parity = json.loads((out / "parity.json").read_text())
    assert len(parity["records"]) == 3 and "gguf-q4_1" in parity["withheld"]


def test_nothing_passed_is_an_error_and_leaves_nothing(built, tmp_path):
    artefacts, adapter = built
    with pytest.raises(ArtifactError, match="gguf-q4_1"):
        publish(tmp_path / "out", artefacts[2:], adapter=adapter, facts=FACTS)
    with pytest.raises(ArtifactError, match="parity was not checked"):
        publish(tmp_path / "out", [Artefact("merged", tmp_path / "merged")], adapter=adapter, facts=FACTS)
    assert not (tmp_path / "out").exists()


def test_card_tells_lineage_verdict_parity_and_limits(built):
    artefacts, _ = built
    card = model_card(FACTS, artefacts)
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "smollm2-135m" and front["license"] == "apache-2.0"
    for text in (
        "b" * 64,
        "d" * 64,
        "c" * 64,
        "SHIP_TUNE",
        "tickets to JSON",
        "a; b",
        "English only",
        "a note on the window",
    ):
        assert text in card
    assert "withheld: luthier: mean KL 2.00e-01 is above 1e-01" in card and "FAILED" in card
    assert "<b>" not in card and "0.123457" in card and "owner" not in card


def test_card_of_an_unjudged_model_says_so(built):
    artefacts, _ = built
    assert "Not judged" in model_card(CardFacts("n", "b", "1", "", "2", "3"), artefacts)
