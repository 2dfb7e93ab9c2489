"""Personal data, secrets, quotation, repair and language: what is found, and what must be left alone."""

import importlib.util
import random
from pathlib import Path

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from luthier.text import language
from luthier.text.cover import CoverIndex, is_leak
from luthier.text.findings import Finding, redact
from luthier.text.language import identify
from luthier.text.pii import find_pii
from luthier.text.quality import answer_flags
from luthier.text.repair import repair
from luthier.text.secrets import find_secrets

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/data_defects.py as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("data_defects", BENCHMARKS / "data_defects.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_planted_private_data_is_found_and_lookalikes_are_not(benchmark):
    texts = benchmark.make_texts(60, 30, seed=5)
    result = benchmark.private_data(benchmark.plant_private(texts, 60, seed=7))
    assert len(result) == 12
    for kind, one in result.items():
        assert one["recall"] >= 0.95 and one["precision"] >= 0.9, (kind, one)


def test_planted_near_duplicates_are_found(benchmark):
    near = benchmark.near_duplicates(benchmark.make_texts(200, 40, seed=1), 150, seed=3)
    assert near["pairs_by_brute_force"] >= 150 and near["recall"] >= 0.97 and near["precision"] >= 0.95


def test_planted_leaks_are_set_aside_and_clean_rows_stay(benchmark):
    found = benchmark.leaks(benchmark.make_texts(300, 40, seed=1), benchmark.make_texts(120, 25, seed=2), seed=0)
    assert len(found["recall_by_form"]) == 4 and set(found["recall_by_form"].values()) == {1.0}
    assert found["clean_rows_set_aside"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "order 4155552671 is late",
        "card 4111 1111 1111 1112",
        "DE89370400440532013001",
        "v1.2.3.4",
        "10.0.0.1",
        "1500 - 300",
    ],
)
def test_a_wrong_check_digit_is_no_personal_data(text):
    assert find_pii(text) == []


def test_the_same_value_keeps_its_name_within_a_row():
    names: dict = {}
    assert redact("a@b.de x@y.de", [Finding(0, 6, "email"), Finding(7, 13, "email")], names) == "[EMAIL_1] [EMAIL_2]"
    assert redact("to x@y.de", [Finding(3, 9, "email")], names) == "to [EMAIL_2]"


def test_digests_and_plain_words_are_no_secrets():
    assert find_secrets("sha256 " + "0123456789abcdef" * 4 + " and the password is incorrect") == []
    assert [f.kind for f in find_secrets("password: hunter2!x")] == ["password"]


def test_repair_undoes_a_wrong_decoding_and_nothing_else():
    assert repair("cafÃ© au lait") == "café au lait"
    for text in ("naïve café", "It’s “fine” — ok", "日本語", "a\r\n  b"):
        assert repair(text) == text


def test_languages_and_what_is_too_short():
    texts = ["Wo ist meine Bestellung, sie sollte gestern ankommen?", "Where is my order, it should have come?", "ok"]
    assert identify(texts) == ["de", "en", "und"]


def test_texts_classified_together_get_what_the_library_gives_each_alone(monkeypatch):
    reference = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    tongues = [
        "where is my order it should have come a week ago",
        "kde je moje objednávka měla přijít před týdnem",
        "où est ma commande elle devait arriver hier",
        "где мой заказ он должен был прийти вчера",
        "wo ist meine bestellung sie sollte gestern kommen",
        "ご注文の商品はどこですか",
    ]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(rng.choice(tongues).split(), k=rng.randint(1, 150))) for _ in range(80)]
    texts += [f"{a[:15]} {b[:15]} {c[:15]}" for a in tongues for b in tongues for c in tongues[:2]]
    texts += ["", tongues[1].upper(), "cafe\u0301 " * 9, "\U0001f600" * 40, "x" * 30, "\ud800" + "ab " * 20]
    expected = []
    for text in texts:
        label, confidence = reference.classify(text[:600])
        is_told = sum(c.isalpha() for c in text[:600]) >= 24 and confidence >= 0.7
        expected.append(label if is_told else "und")
    assert len(set(expected)) > 5
    for at_once in (1, 7, 1024):
        monkeypatch.setattr(language, "TEXTS_AT_ONCE", at_once)
        assert identify(texts) == expected
    assert identify([]) == []


def test_a_turn_of_phrase_is_no_quotation():
    index = CoverIndex(
        ["what do I need to do to get a refund", "how many apples are left when Tom eats two of the nine"]
    )
    assert not any(map(is_leak, index.overlaps("what do I need to do to get a new card")))
    quoted = index.overlaps("He asked: How many apples are left, when Tom eats two of the nine? I said seven.")
    assert any(map(is_leak, quoted))


def test_answers_that_loop_refuse_or_break():
    assert answer_flags("yes, it is open. " * 40) == ["repeats itself"]
    assert answer_flags('```json\n{"a": 1,}\n```') == ["json block does not parse"]
    assert answer_flags("I'm sorry, but I can't assist with that.") == ["refuses"]
    assert answer_flags('{"topic": "billing"}') == [] == answer_flags("card_arrival")
