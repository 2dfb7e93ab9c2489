"""What HIPAA's Safe Harbor removes from a clinical note beyond the forms of text/pii.py: names, dates, ages over 89,
addresses and towns, hospitals, record and other numbers, web addresses.

What: rules on how notes are written (titles, labels, relations, signatures, street suffixes, cue words before numbers)
and a gazetteer of common names; a word that is once found as a name is one everywhere in the row. Why rules: they work
offline, say why, and can be measured; what they miss is stated by `benchmarks/deidentify.py`. It is not a certificate:
Safe Harbor also asks that nobody knows the rest to identify a person.
Source: 45 CFR 164.514(b)(2)(i), items A to R; states and years may stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from luthier.text.clinical_forms import (
    ADDRESSES,
    AFTER_PLACE_CUE,
    AGE,
    BARE_DATE,
    CAP,
    COUNTY,
    CUED_MONTH,
    DATE_FORMS,
    GENERIC,
    HASH,
    HOSPITALS,
    INITIAL,
    KNOWN_TOWN,
    LATE_DAY,
    MBI,
    NAME_RULES,
    NOT_A_DATE,
    NUMBER_FORM,
    PART,
    PLACE_BEFORE,
    RECORD,
    REST,
    TOWN_STATE,
    URL,
    VIN,
    WORD,
)
from luthier.text.findings import Finding, keep_apart
from luthier.text.gazetteer import (
    AMBIGUOUS,
    EPONYMS,
    FAMILY,
    GIVEN,
    MONTHS,
    NOT_NAMES,
    STATES,
)

KINDS = ("url", "hospital", "address", "record_number", "date", "age_over_89", "place", "name")
"""In order of precedence: where two overlap, the earlier one stays."""

Spans = Iterator[tuple[int, int]]


def find_clinical(text: str, kinds: Collection[str] = KINDS, known: Collection[str] = ()) -> list[Finding]:
    """What Safe Harbor names in `text`, by place, without overlaps. known: words that are names elsewhere in the row
    (`name_words`)."""
    found = [Finding(start, end, kind) for kind in KINDS if kind in kinds for start, end in _FINDERS[kind](text)]
    found = keep_apart(found)
    if "name" not in kinds or not (known := {*known, *_words_of(text, found)}):
        return found
    again = (Finding(*m.span(), "name") for m in WORD.finditer(text) if m[0].casefold().removesuffix("'s") in known)
    return keep_apart([*found, *again])


def name_words(texts: Sequence[str]) -> frozenset[str]:
    """The words of all names in these texts, casefolded: what stands alone elsewhere is the same person."""
    return frozenset(word for text in texts for word in _words_of(text, keep_apart(_found_names(text))))


def _found_names(text: str) -> list[Finding]:
    kinds = KINDS[: KINDS.index("name") + 1]
    return [Finding(start, end, kind) for kind in kinds for start, end in _FINDERS[kind](text)]


def _words_of(text: str, found: Sequence[Finding]) -> set[str]:
    words = {
        w.casefold()
        for f in found
        if f.kind == "name"
        for w in re.findall(r"[^\W\d_][\w'’-]{2,}", text[f.start : f.end])
    }
    return words - AMBIGUOUS - NOT_NAMES - {*MONTHS} - {"van", "von", "del", "der", "los", "dos"}


def _group(match: re.Match[str]) -> tuple[int, int]:
    return match.span("it") if "it" in match.re.groupindex and match["it"] else match.span()


def _urls(text: str) -> Spans:
    yield from (m.span() for m in URL.finditer(text))


def _hospitals(text: str) -> Spans:
    for form in HOSPITALS:
        for match in form.finditer(text):
            start, end = _group(match)
            while (word := re.match(r"\S+ ", text[start:end])) and word[0].strip().casefold() in GENERIC:
                start += word.end()
            if re.search(r"\s", text[start:end]) or form is HOSPITALS[-1]:
                yield start, end


def _addresses(text: str) -> Spans:
    for form in ADDRESSES:
        yield from (_group(match) for match in form.finditer(text))


def _numbers(text: str) -> Spans:
    for form in (RECORD, HASH, VIN, MBI):
        yield from (_group(match) for match in form.finditer(text))
    yield from (m.span() for m in NUMBER_FORM.finditer(text) if sum(map(str.isdigit, m[0])) >= 6 or m[0][0].isalpha())


def _dates(text: str) -> Spans:
    for form in DATE_FORMS:
        yield from (match.span() for match in form.finditer(text) if not _is_may(match[0]))
    for form in (BARE_DATE, LATE_DAY, CUED_MONTH):
        for match in form.finditer(text):
            start, end = match.span("date")
            if not NOT_A_DATE.search(text[max(start - 24, 0) : start]):
                yield start, end


def _is_may(words: str) -> bool:
    """Whether this is a verb or an adverb: in lower case "may 3" and "march 2" name no month, nor does "dec 3"."""
    letters = re.search(r"[A-Za-z]{3,}", words.replace("the ", ""))
    return letters is not None and letters[0].islower() and letters[0] in ("may", "march", "mar", "sat", "sun", "dec")


def _ages(text: str) -> Spans:
    for match in AGE.finditer(text):
        yield next(match.span(name) for name in ("age", "age2", "age3", "age4") if match[name])


def _names(text: str) -> Spans:
    for form in NAME_RULES:
        for match in form.finditer(text):
            if (span := _trimmed(text, *match.span("name"))) is not None:
                yield span
    yield from _listed_names(text)
    yield from _unknown_capitals(text)


def _unknown_capitals(text: str) -> Spans:
    """Capitalised words inside a sentence, and two of them at its start, that are no known other word: in running prose
    those are names of people and places. Headings, drugs before a dose and abbreviations are left alone."""
    for match in re.finditer(rf"(?<![\w'’.-]){CAP}(?: {CAP})*", text):
        if _NOT_AFTER.match(text, match.end()):
            continue
        words = match[0].split()
        start = match.start()
        if any(word.casefold() in _BODIES for word in words):
            continue
        if not _mid(text, start) and len(words) < 2:
            continue
        while words and _is_other_word(words[0]):
            start += len(words.pop(0)) + 1
        if words and (len(words) > 1 or _mid(text, start)) and not _DRUG.fullmatch(words[0]):
            span = _trimmed(text, start, start + len(" ".join(words)))
            if span:
                yield span


_BODIES = {*EPONYMS, "association", "society", "college", "act", "guidelines", "administration", "inventory"}
_NOT_AFTER = re.compile(
    r" ?:|'s (?:\w+ )?(?:%s)\b|\s(?:%s)\b| ?\d| (?:mg|mcg|tablet|cream|inhaler)" % (("|".join(EPONYMS),) * 2)
)
_DRUG = re.compile(
    r"\w+(?:pril|sartan|statin|olol|azole|cillin|mycin|micin|oxacin|cycline|vir|mab|nib|prazole|tidine|pine|pam"
    r"|lam|done|dine"
    r"|formin|gliptin|flozin|glutide|parin|xaban|gatran|triptan|setron|sone|solone|nide|terol|phylline|profen"
    r"|caine"
    r"|amide|thiazide|barbital|toin|zepam|zolam|etine|aline|oxetine|ipine|semide|lactone|fibrate|dronate|trexate|platin"
    r"|rubicin|taxel|blastin|cristine)",
    re.IGNORECASE,
)


def _is_other_word(word: str) -> bool:
    bare = re.sub(r"['’]s$", "", word).casefold()
    return bare in NOT_NAMES or bare in MONTHS or bare in STATES


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without words that are no part of a name; None when none is left or it stands for an illness."""
    words = [(start + m.start(), start + m.end()) for m in re.finditer(r"[^\s,]+", text[start:end])]
    bare = [text[a:b].strip(".").casefold() for a, b in words]
    ends = (
        i for i, word in enumerate(bare) if len(word) > 1 and (word in NOT_NAMES or word in MONTHS or word in STATES)
    )
    number = next(ends, len(bare))
    if number == 0 or re.match(rf"(?:'s)?\s(?:{'|'.join(EPONYMS)})\b", text[words[number - 1][1] :]):
        return None
    last = words[number - 1][1]
    if number == 1 and len(bare[0]) < 2:
        return None
    return start, last - (2 if re.search(r"['’]s$", text[start:last]) else 0)


def _listed_names(text: str) -> Spans:
    """Runs of capitalised words that hold a name of the gazetteer."""
    for match in re.finditer(rf"(?<!\w)(?:{INITIAL} ){{0,2}}{PART}{REST}{{0,3}}", text):
        words = [(match.start() + m.start(), match.start() + m.end()) for m in re.finditer(r"\S+", match[0])]
        bare = [re.sub(r"['’]s$|\.", "", text[a:b]).casefold() for a, b in words]
        first = next((i for i, word in enumerate(bare) if _is_listed(word)), None)
        if first is None:
            continue
        begin = first
        while (
            begin > 0
            and bare[begin - 1] not in NOT_NAMES
            and (len(bare[begin - 1]) == 1 or begin - 1 > 0 or _mid(text, words[begin - 1][0]))
        ):
            begin -= 1
        alone = begin == first and first == len(bare) - 1
        if alone and (bare[first] in AMBIGUOUS or bare[first] not in GIVEN):
            continue
        span = _trimmed(text, words[begin][0], match.end())
        if span:
            yield span


def _is_listed(word: str) -> bool:
    return word in GIVEN or word in FAMILY or any(part in GIVEN | FAMILY for part in word.split("-") if "-" in word)


def _mid(text: str, start: int) -> bool:
    """Whether this place is in the middle of a sentence: there a capital letter means something."""
    return re.search(r"[\w,)] $", text[max(start - 2, 0) : start]) is not None


def _places(text: str) -> Spans:
    for match in TOWN_STATE.finditer(text):
        words = match["it"].split()
        skip = next((i for i, w in enumerate(words) if w.casefold() not in NOT_NAMES), len(words))
        if skip < len(words):
            yield match.start("it") + len(" ".join(words[:skip])) + (skip > 0), match.end("it")
    yield from (m.span() for m in COUNTY.finditer(text))
    yield from (m.span() for m in KNOWN_TOWN.finditer(text))
    for match in AFTER_PLACE_CUE.finditer(text):
        before = text[max(match.start() - 40, 0) : match.start()]
        if match[0].casefold() not in STATES | NOT_NAMES and PLACE_BEFORE.search(before):
            yield match.span()


_FINDERS: dict[str, Callable[[str], Spans]] = {
    "url": _urls,
    "hospital": _hospitals,
    "address": _addresses,
    "record_number": _numbers,
    "date": _dates,
    "age_over_89": _ages,
    "place": _places,
    "name": _names,
}
