"""Groups, balance, grouping by vocabulary and the plan of copies, each against a value known beforehand."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from scipy.stats import fisher_exact

from luthier.config.data import DataSpec
from luthier.config.data_checks import ChecksSpec
from luthier.config.data_mix import MixSpec
from luthier.data.balance import diversity, label_balance, volume_advice
from luthier.data.disparity import disparity_sentences, fisher_p, measure
from luthier.data.items import Item, row_id
from luthier.data.mix import copies_of
from luthier.data.records import Record
from luthier.data.split import KINDS, deal
from luthier.text.topics import vendi_score
from luthier.types import Message, Row


def item(prompt, answer="ok", file="a.jsonl", line=1, stratum="", **columns):
    turns: tuple[Message, ...] = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    row = Row(row_id(turns, ""), turns, source=file, line=line, columns=columns)
    return Item(row, Record(file, line, 0, 0, "", None), stratum=stratum)


def test_fisher_is_the_reference_on_random_and_on_lopsided_tables():
    rng = random.Random(0)
    tables = [[[rng.randint(0, 40), rng.randint(0, 9)], [rng.randint(0, 9), rng.randint(1, 40)]] for _ in range(200)]
    tables += [[[0, 5], [5, 0]], [[7, 0], [3, 0]], [[900, 100], [8_000, 1_900]], [[3, 4_000], [90, 3_900]]]
    for table in tables:
        assert fisher_p(table) == pytest.approx(fisher_exact(table).pvalue, rel=1e-6, abs=1e-12), table  # type: ignore[attr-defined]


def loans(num, low_share):
    """num rows a group; group b is granted `low_share` of the time, a 80%; only b's rows speak of the district."""
    shares, words = {"a": 0.8, "b": low_share}, {"a": "town", "b": "eastside"}
    return [
        item(f"case {group}{i} from {words[group]}", "yes" if i < num * shares[group] else "no", line=i, origin=group)
        for group in "ab"
        for i in range(num)
    ]


def test_a_planted_rate_gap_and_a_proxy_word_are_found_and_equal_rates_are_not():
    spec = ChecksSpec(group_column="origin")
    found, conflicting = measure(loans(100, 0.4), spec)
    assert not conflicting and found.rows_by_group == {"a": 100, "b": 100}
    assert found.rates[0]["gap"] == 0.4 and found.rates[0]["rates"] in ({"a": 0.8, "b": 0.4}, {"a": 0.2, "b": 0.6})
    (said,) = disparity_sentences(found, 0.2)
    assert "60% in group b, 20% in group a" in said and disparity_sentences(found, 0.5) == []
    assert {(one["word"], one["group"]) for one in found.proxies} == {("eastside", "b"), ("town", "a")}
    assert disparity_sentences(measure(loans(100, 0.8), spec)[0], 0.2) == []
    assert disparity_sentences(measure(loans(5, 0.4), spec)[0], 0.2) == []  # five rows a group: it may be chance


def test_vendi_is_the_brute_force_value_and_counts_what_is_different():
    points_ND = np.random.default_rng(0).normal(size=(12, 5))
    points_ND /= np.linalg.norm(points_ND, axis=1, keepdims=True)
    values = [max(v, 0.0) for v in np.linalg.eigvals(points_ND @ points_ND.T / 12).real]
    brute = math.exp(-sum(v * math.log(v) for v in values if v > 1e-12))
    assert vendi_score(points_ND) == pytest.approx(brute, rel=1e-6)
    assert vendi_score(np.eye(4)) == pytest.approx(4.0) and vendi_score(np.eye(4)[[0] * 9]) == pytest.approx(1.0)


SUBJECTS = {
    "kettle": "kettle boil water steam lid spout handle limescale",
    "fan": "fan blade wind speed motor noise breeze grille",
}


def prompts(subject, num, seed):
    rng = random.Random(seed)
    return [" ".join(rng.sample(SUBJECTS[subject].split(), 5)) for _ in range(num)]


def filling(num, seed):
    rng = random.Random(seed)
    words = [f"{a}o{b}ek" for a in "bcdfghklmn" for b in "prstvzbdgk"]
    return [" ".join(rng.sample(words, 6)) for _ in range(num)]


def test_topics_are_the_planted_subjects_and_rare_classes_are_counted():
    rows = [item(prompt).row for prompt in [*prompts("kettle", 40, 0), *prompts("fan", 20, 1), *filling(240, 1)]]
    found = diversity(rows)
    topics = [set(topic["terms"]) for topic in found["topics"]]
    assert any(topic and topic <= set(SUBJECTS["kettle"].split()) for topic in topics), topics
    assert sum(topic["share"] for topic in found["topics"]) == pytest.approx(1, abs=1e-3)
    same = diversity([item(f"same words again {'x' if i % 2 else 'y'}").row for i in range(60)])
    assert same["distinct_1"] < found["distinct_1"] and same["vendi"] < found["vendi"]
    (balance,) = label_balance(["yes"] * 50 + ["no"] * 48 + ["maybe"] * 2)
    assert (balance["commonest"], balance["rarest_rows"], balance["classes_under_5_rows"]) == ("yes", 2, 1)
    assert 2 < balance["effective_classes"] < 3 and label_balance([f"answer {i}" for i in range(50)]) == []
    assert "new_task" in volume_advice(600, "new_task") and volume_advice(600, "style") == ""


def test_same_vocabulary_is_one_group_only_when_asked():
    same = ["lamp bulb light shade switch", "switch light lamp shade bulb", "bulb switch shade lamp light"]
    items = [item(text, line=i) for i, text in enumerate([*filling(60, 2), *same])]
    how = {"shares": {"train": 0.6, "dev": 0.2, "test": 0.2}, "threshold": 0.5, "seed": 0}
    lamps = range(60, 63)
    assert len({deal(items, **how).group_of[i] for i in lamps}) == 3
    dealt = deal(items, **how, semantic=0.5)
    assert len({dealt.group_of[i] for i in lamps}) == 1 and len({dealt.split_of[i] for i in lamps}) == 1
    assert "same vocabulary" in {KINDS[kind] for kind in dealt.edges.kind}


def sizes_seen(items, **mix):
    seen = Counter()
    for one, copies in zip(items, copies_of(items, MixSpec(**mix)), strict=True):
        seen[one.row.source] += copies
    return seen


def test_temperature_evens_files_out_at_the_same_number_of_rows():
    items = [item(f"a{i}", file="a.jsonl") for i in range(900)] + [item(f"b{i}", file="b.jsonl") for i in range(100)]
    assert sizes_seen(items) == {"a.jsonl": 900, "b.jsonl": 100}
    warm = sizes_seen(items, temperature=2)  # square roots 30 : 10 of 1,000 rows
    assert warm["a.jsonl"] == pytest.approx(750, abs=40) and warm["b.jsonl"] == pytest.approx(250, abs=25)
    hot = sizes_seen(items, temperature=100)
    assert hot["a.jsonl"] / hot["b.jsonl"] == pytest.approx(1.0, abs=0.15)
    assert sizes_seen(items, temperature=2) == warm and sizes_seen(items, temperature=2, seed=1) != warm


def test_upsampling_lifts_rare_classes_by_the_power_and_no_further_than_the_cap():
    items = [item(f"a{i}", "yes") for i in range(400)] + [item(f"b{i}", "no", stratum="rare") for i in range(25)]
    copies = copies_of(items, MixSpec(upsample="answer"))
    assert set(copies[:400]) == {1} and set(copies[400:]) == {4}  # (400 / 25) ** 0.5
    assert set(copies_of(items, MixSpec(upsample="answer", upsample_power=1, upsample_most=3))[400:]) == {3}
    with pytest.raises(ValueError, match="name its column"):
        DataSpec.model_validate({"train": ["a.jsonl"], "mix": {"upsample": "stratum"}})
    assert set(copies_of(items, MixSpec(upsample="stratum", upsample_power=0.25))[400:]) == {2}
    assert set(copies_of(items, MixSpec())) == {1}
