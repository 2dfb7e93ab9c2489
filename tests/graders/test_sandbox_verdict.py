"""Fake passes must not pass, and honest programs must: the verdict is made where no byte of the program is loaded."""

import subprocess
import sys

import pytest

from luthier.graders.sandbox.attack import FAKE_TESTS, FAKES
from luthier.graders.sandbox.box import shared_pool

MORE_FAKES = {
    "os._exit when called": "import os\ndef answer(): os._exit(0)",
    "sys.exit when called": "import sys\ndef answer(): sys.exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef answer(): return 1",
    "replace a builtin": "import builtins\nbuiltins.AssertionError = SystemExit\ndef answer(): raise SystemExit(0)",
    "no traceback": "import sys, os\nsys.excepthook = lambda *error: os._exit(0)\ndef answer(): raise ValueError",
    "an int that equals all": "class Int(int):\n    __eq__ = lambda a, b: True\ndef answer(): return Int(1)",
    "a text that equals all": "class Text(str):\n    __eq__ = lambda a, b: True\ndef answer(): return Text('')",
    "a list that equals all": "class List(list):\n    __eq__ = lambda a, b: True\ndef answer(): return List()",
    "a dict that equals all": "class D(dict):\n    __eq__ = lambda a, b: True\ndef answer(): return D()",
    "a class with a metaclass that equals all": (
        "class Meta(type):\n    __eq__ = lambda a, b: True\n    __hash__ = type.__hash__\n"
        "class answer(metaclass=Meta):\n    def __new__(cls): return cls"
    ),
}


def verdict(program, tests, entry_point=""):
    return shared_pool().run(program, tests, entry_point=entry_point)


@pytest.mark.parametrize("name", [*FAKES, *MORE_FAKES])
def test_a_fake_does_not_pass_and_would_in_one_process(name):
    program = (FAKES | MORE_FAKES)[name]
    assert verdict(program, FAKE_TESTS).status in ("failed", "killed")
    in_one_process = subprocess.run([sys.executable, "-c", f"{program}\n{FAKE_TESTS}"], capture_output=True)
    assert in_one_process.returncode == 0, "the fake is a real one"


NEAR = "class Near:\n    __sub__ = __rsub__ = lambda a, b: 0\n    __abs__ = lambda a: 0\n"
FORGED_OPINIONS = {  # program, tests that a right answer would pass
    "the difference": (NEAR + "def f(): return Near()", "assert abs(f() - 3.14) < 1e-6"),
    "the other difference": (NEAR + "def f(): return Near()", "assert abs(3.14 - f()) < 1e-6"),
    "the ratio": ("class R:\n    __truediv__ = lambda a, b: 1\ndef f(): return R()", "assert f() / 7 == 1"),
    "in": ("class C:\n    __contains__ = lambda a, b: True\ndef f(): return C()", "assert 7 in f()"),
    "stopping the iteration": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
    "a length": (
        "class L:\n    __len__ = lambda a: 2\n    __iter__ = lambda a: iter(())\ndef f(): return L()",
        "assert len(f()) == 2 and all(a == b for a, b in zip(f(), [7, 8]))",
    ),
    "less": ("class C:\n    __lt__ = lambda a, b: True\ndef f(): return C()", "assert f() < 7"),
    "a method of text": (
        "class T:\n    def startswith(self, x): return True\ndef f(): return T()", "assert f().startswith('Dear')"
    ),
    "a method of lists": (
        "class T:\n    def count(self, x): return 3\ndef f(): return T()", "assert f().count(7) == 3"
    ),
    "a builtin name": (
        "def all(x): return True\ndef sorted(x): return [1, 2]\ndef f(): return 5", "assert all(f() == x for x in [1])"
    ),
    "a named class against a value": (
        "class Box:\n    __eq__ = lambda a, b: True\n    def open(self): return Box()", "assert Box().open() == 7"
    ),
    "the distance of a named class": (
        "class Box:\n    __sub__ = lambda a, b: 0\n    def open(self): return Box()", "assert abs(Box().open() - 7) < 1"
    ),
    "a skipped test": (
        "import unittest\ndef f(): raise unittest.SkipTest",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(), 1)",
    ),
    "almost equal": (
        NEAR + "    __eq__ = lambda a, b: True\ndef f(): return Near()",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertAlmostEqual(f(), 1.5)",
    ),
    "the tests' globals through a callback": (
        "def f(call):\n    call.__globals__['expected'] = 0\n    return 0",
        "expected = 7\nassert f(lambda: None) == expected",
    ),
    "the class of a lent object": (
        "def f(case):\n    case.__class__.check = lambda self, x: True\n    return 0",
        "class Case:\n    def check(self, x): assert x == 7\ncase = Case()\ncase.check(f(case))",
    ),
    "a method of a lent object": (
        "def f(case):\n    case.check = lambda x: True\n    return 0",
        "class Case:\n    def check(self, x): assert x == 7\ncase = Case()\ncase.check(f(case))",
    ),
    "a private attribute of a lent object": (
        "def f(case): return case._expected",
        "class Case: _expected = 7\nassert f(Case()) == 7",
    ),
    "a module in the folder": (
        "open('colorsys.py', 'w').write('def rgb_to_hsv(*x): return 7')\ndef f(): return 7",
        "import colorsys\nassert f() == colorsys.rgb_to_hsv(0, 0, 0)",
    ),
    "a reference to nothing": (
        "import json, os, struct\n"
        "text = json.dumps({'reply': {'t': 'yours', 'id': 999}, 'printed': ''}).encode()\n"
        "def f(): os.write(4, struct.pack('>I', len(text)) + text); os._exit(0)",
        "assert f() == 7",
    ),
    "a request instead of an answer": (
        "import json, os, struct\n"
        "text = json.dumps({'ask': 'bind', 'target': 0, 'args': [['f']], 'names': []}).encode()\n"
        "def f(): os.write(4, struct.pack('>I', len(text)) + text); return 1",
        "assert f() == 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED_OPINIONS)
def test_a_program_has_no_opinion_about_its_own_answer(name):
    result = verdict(*FORGED_OPINIONS[name])
    assert result.status == "failed", result


HONEST = {  # program, tests; all pass
    "values": (
        "import decimal, fractions, collections, datetime\n"
        "def same(x): return x\ndef counts(t): return collections.Counter(t)\n"
        "P = collections.namedtuple('P', 'x y')\ndef point(): return P(1, 2)",
        "import datetime, decimal, fractions, math\n"
        "for x in [None, True, 1, 2**200, -2**70, 1.5, math.inf, 'ü\\ud800', b'x', (1, (2,)), {1, 2}, {'a': [1]},"
        " {(1, 2): 3}, range(3), 1j, frozenset([1]), decimal.Decimal('1.10'), fractions.Fraction(1, 3),"
        " datetime.date(2020, 1, 2), datetime.timedelta(days=1)]:\n"
        "    assert same(x) == x and type(same(x)) is type(x), x\n"
        "assert math.isnan(same(math.nan)) and counts('aab') == {'a': 2, 'b': 1}\n"
        "assert point().x == 1 and point() == (1, 2)",
    ),
    "arguments changed in place": (
        "def sort(x, *, d): x.sort(); d['n'] = len(x)",
        "x, d = [3, 1], {}\nsort(x, d=d)\nassert x == [1, 3] and d == {'n': 2}",
    ),
    "callbacks": (
        "def twice(f, x): return f(f(x))\ndef walk(visit): visit(1); visit(2)\ndef make(n): return lambda x: x + n",
        "out = []\nassert twice(lambda x: x * 3, 2) == 18 and make(2)(3) == 5\nwalk(out.append)\nassert out == [1, 2]\n"
        "import math\nassert twice(math.sqrt, 16) == 2 and twice(str, 1) == '1'",
    ),
    "errors": (
        "class Empty(LookupError): pass\ndef pop(): raise Empty('nothing')\ndef key(): raise KeyError('k')\n"
        "def bad(n):\n    if n < 0: raise ValueError(f'negative: {n}')",
        "import unittest\nfor kind in (Empty, LookupError):\n    try: pop()\n"
        "    except kind as e: assert str(e) == 'nothing'\n    else: assert False\n"
        "class T(unittest.TestCase):\n    def test(self):\n"
        "        with self.assertRaisesRegex(ValueError, 'negative: -1'): bad(-1)\n"
        "        with self.assertRaises(KeyError): key()",
    ),
    "a class": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def __len__(self): return len(self.items)\n    def __iter__(self): return iter(self.items)\n"
        "    def __getitem__(self, i): return self.items[i]\n    def __eq__(self, o): return self.items == o.items\n"
        "    def __contains__(self, x): return x in self.items\n    def __enter__(self): return self\n"
        "    def __exit__(self, *e): self.push('left')\n    def __repr__(self): return 'S'",
        "s = Stack()\ns.push(1)\ns.push(2)\n"
        "assert len(s) == 2 and list(s) == [1, 2] and s[0] == 1 and s.items == [1, 2]\n"
        "t = Stack()\nassert s != t and 2 in s and 7 not in s and repr(s) == 'S' and isinstance(s, Stack)\n"
        "with t as u: u.push(0)\nassert list(t) == [0, 'left']\ns.items = []\nassert s == Stack() and not s",
    ),
    "operators": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n"
        "    def __mul__(s, k): return V(s.x * k)\n    __rmul__ = __mul__\n    def __eq__(s, o): return s.x == o.x\n"
        "    def __lt__(s, o): return s.x < o.x\n    def __hash__(s): return hash(s.x)",
        "assert V(1) + V(2) == V(3) and 3 * V(2) == V(2) * 3 == V(6) and V(1) < V(2) and len({V(1), V(1)}) == 1\n"
        "assert sorted([V(2), V(1)])[0].x == 1 and max(V(1), V(2)) == V(2)",
    ),
    "generators": (
        "def count():\n    n = 0\n    while True: yield n; n += 1\ndef total(xs): return sum(xs)",
        "import itertools\nassert list(itertools.islice(count(), 3)) == [0, 1, 2] and total(x for x in range(4)) == 6\n"
        "assert next(count()) == 0",
    ),
    "coroutines": (
        "import asyncio\nasync def slow(x):\n    await asyncio.sleep(0)\n    return x + 1",
        "import asyncio\nasync def main(): return await slow(1), await slow(2)\nassert asyncio.run(main()) == (2, 3)\n"
        "assert asyncio.run(slow(3)) == 4",
    ),
    "printing": (
        "def hello(name): print('hello', name)",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out: hello('you')\n"
        "assert out.getvalue() == 'hello you\\n'",
    ),
    "objects of the tests": (
        "def length(node):\n    n = 0\n    while node: n += 1; node = node.next\n    return n\n"
        "def cut(node): node.next = None",
        "class Node:\n    def __init__(self, next=None): self.next = next\nchain = Node(Node(Node()))\n"
        "assert length(chain) == 3\ncut(chain)\nassert chain.next is None",
    ),
    "functions called test": ("def one(): return 1", "def test_one():\n    assert one() == 1"),
    "an import of the program": (
        "def one(): return 1\nTWO = 2", "from solution import one, TWO\nassert one() + 1 == TWO"
    ),
    "files": ("def read(name): return open(name).read()", "open('a.txt', 'w').write('x')\nassert read('a.txt') == 'x'"),
    "enumerations": (
        "import enum\nclass C(enum.Enum): RED = 1\ndef pick(): return C.RED",
        "assert pick() == C.RED and pick() is C.RED and pick().value == 1 and C(1) is C.RED",
    ),
    "dataclasses": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef make(x): return P(x)",
        "assert make(1) == P(1) and make(1) != P(2) and make(3).x == 3",
    ),
    "properties and statics": (
        "class A:\n    @property\n    def p(self): return 1\n    @staticmethod\n    def s(): return 2\n"
        "    @classmethod\n    def c(cls): return cls()",
        "assert A().p == 1 and A.s() == 2 and A.c().p == 1",
    ),
    "the standard library": (
        "import re, json, math, itertools, hashlib, random, sqlite3, tempfile, threading, zoneinfo\n"
        "def f():\n    t = threading.Thread(target=print)\n    t.start(); t.join()\n"
        "    open(tempfile.mkstemp()[1], 'w').close()\n"
        "    return sqlite3.connect(':memory:').execute('select 1').fetchone()[0], hashlib.sha256(b'').hexdigest()[:4]",
        "assert f() == (1, 'e3b0')",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass_and_wrong_ones_do_not(name):
    program, tests = HONEST[name]
    result = verdict(program, tests)
    assert result.passed, result
    broken = verdict(program.replace("return ", "return None and ").replace("yield ", "yield 9 + "), tests)
    assert not broken.passed or "return" not in program


def test_humaneval_form():
    tests = "def check(candidate):\n    assert candidate(2) == 4\n"
    assert verdict("def double(x): return 2 * x", tests, "double").passed
    assert not verdict("def double(x): return 3 * x", tests, "double").passed
    assert "KeyError" in verdict("def other(x): return 2 * x", tests, "double").problem


def test_the_problem_names_the_line_of_the_tests():
    result = verdict("def add(a, b): return a - b", "assert add(0, 0) == 0\nassert add(1, 2) == 3  # here")
    assert result.problem == "tests:2: assert add(1, 2) == 3 # here: AssertionError"
    assert "line 2" in verdict("x = 1\ny = = 2", "assert x == 1").problem


def test_the_same_run_gives_the_same_values():
    program = (
        "import random\nA = [random.random() for _ in range(3)]\nB = list({'x', 'y', 'z', 'w'})\ndef get(): return A, B"
    )
    first, second = (verdict(program + f"\nraise ValueError((A, B))  # {n}", "get()").problem for n in (1, 2))
    assert first == second and "0." in first
