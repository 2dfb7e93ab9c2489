"""How one, two or three functions of the library are put together into a new one: words and code of each way.

A pattern is a function of a `Sketch`. It takes pieces from the library, and gives the body and the sentence. The first
parameter of the new function is one record (`sketch.one`) or a list of them (`sketch.many`).
"""

from __future__ import annotations

from collections.abc import Callable

from sketch import Sketch, Unfit

Made = tuple[str, str]
"""(body, sentence)"""


def converted(s: Sketch) -> Made:
    m = s.take("measure")
    u = s.convert(m.unit)
    said, how = s.figure(m, f"the {s.one}"), s.bare(u)
    return f"return {s.call(u, s.call(m, s.one))}", s.say(
        f"{said}, {how}", f"tells {said} {how}", f"return {said}, but {how}"
    )


def after_change(s: Sketch) -> Made:
    m, c = s.take("measure"), s.take("change")
    said, how = s.figure(m, f"the {s.one}"), s.bare(c)
    return f"return {s.call(m, s.call(c, s.one))}", s.say(
        f"{said} once it is {how}", f"suppose the {s.one} is {how}: give {said}", f"{said}, provided it were {how}"
    )


def fall(s: Sketch) -> Made:
    m, c = s.take("measure"), s.take("change")
    said, how = s.figure(m, f"the {s.one}"), s.bare(c)
    return f"return {s.call(m, s.one)} - {s.call(m, s.call(c, s.one))}", s.say(
        f"{said}: how far it falls once it is {how}", f"{said} now, minus the same once it is {how}",
        f"the drop from {said} as it stands to what it is when {how}",
    )  # fmt: skip


def sum_kept(s: Sketch) -> Made:
    s.takes_many = True
    m, k = s.take("measure"), s.take("keep")
    which, said = s.bare(k), s.figure(m, f"one {s.one}")
    return f"return sum({s.call(m, 'x')} for x in {s.call(k, s.many)})", s.say(
        f"add up {said} over all {s.many} {which}", f"for the {s.many} {which}, {said}, summed",
        f"take only {s.many} {which}; total {said}",
    )  # fmt: skip


def total_kept(s: Sketch) -> Made:
    s.takes_many = True
    t, k = s.take("total"), s.take("keep")
    which = s.bare(k)
    return f"return {s.call(t, s.call(k, s.many))}", s.say(
        s.figure(t, f"those {s.many} {which}"), s.figure(t, f"all {s.many} {which}")
    )


def labels_where(s: Sketch) -> Made:
    s.takes_many = True
    label, t = s.take("label"), s.take("test")
    said, how = s.figure(label, f"each {s.one}"), s.bare(t)
    return f"return [{s.call(label, 'x')} for x in {s.many} if {s.call(t, 'x')}]", s.say(
        f"list {said} that is {how}", f"{said}, left out unless it is {how}", f"for every {s.one} that is {how}: {said}"
    )


def labels_unless(s: Sketch) -> Made:
    s.takes_many = True
    label, t = s.take("label"), s.take("test")
    said, how = s.figure(label, f"each {s.one}"), s.bare(t)
    return f"return [{s.call(label, 'x')} for x in {s.many} if not {s.call(t, 'x')}]", s.say(
        f"list {said} that is not {how}",
        f"skip what is {how}; of the rest, {said}",
        f"{said}, except where it is {how}",
    )


def label_of_most(s: Sketch) -> Made:
    s.takes_many = True
    label, m = s.take("label"), s.take("measure", plain=True)
    most = s.rng.choice(("max", "min"))
    word = s.rng.choice({"max": ("largest", "highest", "greatest"), "min": ("smallest", "lowest", "least")}[most])
    noun, said = s.figure(m, "them").removesuffix(" of them").removeprefix("the "), s.figure(label, f"the {s.one}")
    return f"return {s.call(label, f'{most}({s.many}, key={m.path})')}", s.say(
        f"{said} with the {word} {noun}",
        f"find the {s.one} whose {noun} is {word}; answer with {said.replace(f'the {s.one}', 'it')}",
    )


def label_of_first(s: Sketch) -> Made:
    s.takes_many = True
    label, o = s.take("label"), s.take("order")
    first = s.bare(o)
    return f"return {s.call(label, f'{s.call(o, s.many)}[0]')}", s.say(
        s.figure(label, f"the {first} {s.one}"), s.figure(label, f"whichever {s.one} is {first}")
    )


def labels_of_top(s: Sketch) -> Made:
    s.takes_many = True
    label, o = s.take("label"), s.take("order")
    first, n = s.bare(o), s.parameter("n", (2, 3, 4))
    said = s.figure(label, f"the `n` {first} {s.many}")
    return f"return [{s.call(label, 'x')} for x in {s.call(o, s.many)}[:{n}]]", s.say(
        f"list {said}", f"{said}, one by one"
    )


def figure_of_first(s: Sketch) -> Made:
    s.takes_many = True
    m, o = s.take("measure"), s.take("order")
    first = s.bare(o)
    return f"return {s.call(m, f'{s.call(o, s.many)}[0]')}", s.say(
        s.figure(m, f"the {first} {s.one}"), s.figure(m, f"the {first} among the {s.many}")
    )


def count_where(s: Sketch) -> Made:
    s.takes_many = True
    t, k = s.take("test"), s.take("keep")
    which, how = s.bare(k), s.bare(t)
    return f"return sum({s.call(t, 'x')} for x in {s.call(k, s.many)})", s.say(
        f"how many {s.many} {which} are {how}", f"count the {s.many} {which}, but only what is {how}",
        f"the number of {s.many} {which} for which it holds that each is {how}",
    )  # fmt: skip


def count_kept(s: Sketch) -> Made:
    s.takes_many = True
    a, b = s.take("keep"), s.take("keep")
    return f"return len({s.call(a, s.call(b, s.many))})", s.say(
        f"how many of the {s.many} {s.bare(b)} are also among those {s.bare(a)}",
        f"count {s.many} {s.bare(b)} and also {s.bare(a)}",
    )


def figure_if(s: Sketch) -> Made:
    m, t = s.take("measure"), s.take("test")
    said, how = s.figure(m, f"the {s.one}"), s.bare(t)
    return f"return {s.call(m, s.one)} if {s.call(t, s.one)} else 0", s.say(
        f"{said} if it is {how}, else 0",
        f"zero unless the {s.one} is {how}; then {said}",
        f"{said}, or 0 when it is not {how}",
    )


def label_or(s: Sketch) -> Made:
    label, t = s.take("label"), s.take("test")
    other = s.rng.choice(("none", "skip", "fine", "-", "later"))
    said, how = s.figure(label, f"the {s.one}"), s.bare(t)
    return f'return "{other}" if {s.call(t, s.one)} else {s.call(label, s.one)}', s.say(
        f"'{other}' when the {s.one} is {how}, otherwise {said}", f"{said}, but '{other}' for one that is {how}"
    )


def both_tests(s: Sketch) -> Made:
    a, b = s.take("test"), s.take("test")
    join = s.rng.choice(("and", "or", "and not"))
    words = {"and": "and also", "or": "or else", "and not": "and yet not"}[join]
    one, other = s.bare(a), s.bare(b)
    return f"return {s.call(a, s.one)} {join} {s.call(b, s.one)}", s.say(
        f"is the {s.one} {one}, {words} {other}", f"true for a {s.one} that is {one} {words} {other}"
    )


def table(s: Sketch) -> Made:
    s.takes_many = True
    label, m = s.take("label"), s.take("measure")
    key, said = s.figure(label, f"each {s.one}"), s.figure(m, "it")
    return f"return {{{s.call(label, 'x')}: {s.call(m, 'x')} for x in {s.many}}}", s.say(
        f"a dict from {key} to {said}", f"map {key} to {said}", f"{said}, looked up by {key}"
    )


def line(s: Sketch) -> Made:
    label, m = s.take("label"), s.take("measure")
    mark = s.rng.choice((": ", " - ", " = ", ", "))
    first, second = s.figure(label, f"the {s.one}"), s.figure(m, "it")
    return f'return f"{{{s.call(label, s.one)}}}{mark}{{{s.call(m, s.one)}}}"', s.say(
        f"one line: {first}, then '{mark}', then {second}", f"text of {first} and {second}, joined by '{mark}'"
    )


def labels_above(s: Sketch) -> Made:
    s.takes_many = True
    label, m = s.take("label"), s.take("measure")
    sign, words = s.rng.choice(((">", ("exceeds", "is above")), ("<", ("stays below", "is under"))))
    said, key = s.figure(m, "it"), s.figure(label, f"each {s.one}")
    limit = s.parameter("limit", ("auto",))
    return f"return [{s.call(label, 'x')} for x in {s.many} if {s.call(m, 'x')} {sign} {limit}]", s.say(
        f"{key} where {said} {s.rng.choice(words)} `limit`",
        f"list {key}, if only {said} {s.rng.choice(words)} `limit`",
    )


def any_all(s: Sketch) -> Made:
    s.takes_many = True
    t, k = s.take("test"), s.take("keep")
    which, how = s.bare(k), s.bare(t)
    word = s.rng.choice(("any", "all"))
    group = f"the {s.many} {which}"
    said = {
        "any": (f"is at least one of {group} {how}", f"true as soon as a single one of {group} is {how}"),
        "all": (f"are {group} without exception {how}", f"true only if every one of {group} is {how}"),
    }[word]
    return f"return {word}({s.call(t, 'x')} for x in {s.call(k, s.many)})", s.say(*said)


def test_after(s: Sketch) -> Made:
    t, c = s.take("test"), s.take("change")
    how, then = s.bare(c), s.bare(t)
    return f"return {s.call(t, s.call(c, s.one))}", s.say(
        f"would the {s.one} be {then} once {how}",
        f"is the {s.one}, after it is {how}, {then}",
        f"whether being {how} leaves the {s.one} {then}",
    )


def mean(s: Sketch) -> Made:
    s.takes_many = True
    m = s.take("measure")
    said = s.figure(m, f"the {s.many}")
    return f"return sum({s.call(m, 'x')} for x in {s.many}) / len({s.many})", s.say(
        f"on average, {said}", f"{said}, as a mean over the list", f"divide by their number: {said}"
    )


def gap(s: Sketch) -> Made:
    a = s.take("measure")
    b = s.take("measure", unit=a.unit)
    if not a.unit:
        raise Unfit("no unit")
    one, other = s.figure(a, f"the {s.one}"), s.figure(b, "it")
    return f"return {s.call(a, s.one)} - {s.call(b, s.one)}", s.say(
        f"{one} less {other}", f"from {one}, subtract {other}", f"the difference between {one} and {other}"
    )


def converted_total(s: Sketch) -> Made:
    s.takes_many = True
    t = s.take("total")
    u = s.convert(t.unit)
    how = s.bare(u)
    said = s.figure(t, s.rng.choice((f"all {s.many}", f"the {s.many}", f"a list of {s.many}")))
    return f"return {s.call(u, s.call(t, s.many))}", s.say(f"{said}, {how}", f"give {said} {how}")


def sorted_labels(s: Sketch) -> Made:
    s.takes_many = True
    label, m = s.take("label"), s.take("measure", plain=True)
    noun, key = s.figure(m, "them").removesuffix(" of them"), s.figure(label, f"each {s.one}")
    return f"return [{s.call(label, 'x')} for x in sorted({s.many}, key={m.path})]", s.say(
        f"{key}, ordered by {noun}", f"sort by {noun}, smallest first, and list {key}"
    )


def total_changed(s: Sketch) -> Made:
    s.takes_many = True
    t, c = s.take("total"), s.take("change")
    how = s.bare(c)
    said = s.figure(t, f"the {s.many}")
    return f"changed = [{s.call(c, 'x')} for x in {s.many}]\n    return {s.call(t, 'changed')}", s.say(
        f"{said} if each were {how}", f"let every {s.one} be {how}; then {said}"
    )


def label_after(s: Sketch) -> Made:
    label, c = s.take("label"), s.take("change")
    how, said = s.bare(c), s.figure(label, f"the {s.one}")
    return f"return {s.call(label, s.call(c, s.one))}", s.say(
        f"{said} when it has been {how}", f"{said} as it reads once {how}"
    )


def spread(s: Sketch) -> Made:
    s.takes_many = True
    m = s.take("measure")
    said = s.figure(m, f"the {s.many}")
    return f"values = [{s.call(m, 'x')} for x in {s.many}]\n    return max(values) - min(values)", s.say(
        f"the spread between the extremes: {said}",
        f"{said}: highest minus lowest",
        f"the range of values that {said} takes",
    )


def changed_twice(s: Sketch) -> Made:
    m, a, b = s.take("measure"), s.take("change"), s.take("change")
    first, then, said = s.bare(a), s.bare(b), s.figure(m, f"the {s.one}")
    return f"new = {s.call(b, s.call(a, s.one))}\n    return {s.call(m, 'new')}", s.say(
        f"{said} after it is first {first}, then {then}", f"let the {s.one} be {first} and next {then}; what is {said}"
    )


def first_that(s: Sketch) -> Made:
    s.takes_many = True
    o, t, label = s.take("order"), s.take("test"), s.take("label")
    first, how = s.bare(o), s.bare(t)
    said = s.figure(label, f"the {first} {s.one}")
    return (
        f"found = [x for x in {s.call(o, s.many)} if {s.call(t, 'x')}]\n    return {s.call(label, 'found[0]')}",
        s.say(f"{said} that is {how}", f"{said}, counting just what is {how}"),
    )


def total_of_top(s: Sketch) -> Made:
    s.takes_many = True
    t, o = s.take("total"), s.take("order")
    first, n = s.bare(o), s.parameter("n", (2, 3, 4))
    said = s.figure(t, f"the `n` {first} {s.many}")
    return f"return {s.call(t, f'{s.call(o, s.many)}[:{n}]')}", s.say(said, f"{said}, leaving the others out")


def converted_sum(s: Sketch) -> Made:
    s.takes_many = True
    m = s.take("measure")
    u = s.convert(m.unit)
    said, how = s.figure(m, f"each {s.one}"), s.bare(u)
    return f"total = sum({s.call(m, 'x')} for x in {s.many})\n    return {s.call(u, 'total')}", s.say(
        f"add up {said} and give the sum {how}", f"{said}, summed, {how}"
    )


def converted_line(s: Sketch) -> Made:
    label, m = s.take("label"), s.take("measure")
    u = s.convert(m.unit)
    first, second, how = s.figure(label, f"the {s.one}"), s.figure(m, "it"), s.bare(u)
    return f'return f"{{{s.call(label, s.one)}}}: {{{s.call(u, s.call(m, s.one))}}}"', s.say(
        f"one line: {first}, a colon, then {second}, {how}", f"{first} and, after a colon, {second} {how}"
    )


def first_of_kept(s: Sketch) -> Made:
    s.takes_many = True
    o, k, label = s.take("order"), s.take("keep"), s.take("label")
    first, which = s.bare(o), s.bare(k)
    return f"return {s.call(label, f'{s.call(o, s.call(k, s.many))}[0]')}", s.say(
        s.figure(label, f"the {first} of the {s.many} {which}"),
        s.figure(label, f"the {first} {s.one} among those {which}"),
    )


def share_of_kept(s: Sketch) -> Made:
    s.takes_many = True
    t, k = s.take("total"), s.take("keep")
    which, said = s.bare(k), s.figure(t, "them")
    return f"return {s.call(t, s.call(k, s.many))} / {s.call(t, s.many)}", s.say(
        f"for the {s.many} {which}: {said}, divided by the same of all {s.many}",
        f"the {s.many} {which} against all {s.many}: quotient of {said}",
    )


def test_of_first(s: Sketch) -> Made:
    s.takes_many = True
    t, o = s.take("test"), s.take("order")
    first, how = s.bare(o), s.bare(t)
    return f"return {s.call(t, f'{s.call(o, s.many)}[0]')}", s.say(
        f"is the {first} of the {s.many} {how}", f"whether the {first} {s.one} is {how}"
    )


PATTERNS: tuple[Callable[[Sketch], Made], ...] = (
    converted, after_change, fall, sum_kept, total_kept, labels_where, labels_unless, label_of_most, label_of_first,
    labels_of_top, figure_of_first, count_where, count_kept, figure_if, label_or, both_tests, table, line, labels_above,
    any_all, test_after, mean, gap, converted_total, sorted_labels, total_changed, label_after, spread, changed_twice,
    first_that, total_of_top, converted_sum, converted_line, first_of_kept, share_of_kept, test_of_first,
)  # fmt: skip
