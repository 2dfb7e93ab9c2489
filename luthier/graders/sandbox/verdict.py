"""The process in which the tests run, and in which the verdict is made. No byte of the program is ever loaded here.

The program's functions and classes stand in the tests' namespace as `Remote` objects. Plain values that they return are
compared here. An object of the program's own is believed about itself (==, <, in, truth, arithmetic) only when the
tests name its class; of any other class it is opaque, equal to nothing: an answer whose `__eq__` always says True
passes nothing. What the program may do to objects that tests pass to it is listed in `Tests.allowed`.
"""

from __future__ import annotations

import builtins
import os
import sys
import traceback
import unittest
from collections import deque
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from luthier.graders.sandbox.peer import ACCESS, ARITHMETIC, COMPARISONS, Peer, Remote
from luthier.graders.sandbox.program import module_of

TESTS = "tests"
MAX_PROBLEM_CHARS = 500
OPINIONS = {*COMPARISONS, *ARITHMETIC, "__bool__", "__contains__", "__hash__", "__len__"}
DIFFERENCES = {f"__{side}{name}__" for name in ("sub", "truediv", "floordiv", "mod", "xor") for side in ("", "r")}
"""Operators that tell how far two values are apart, as in abs(got - expected) < 1e-6."""
PLAIN_METHODS = {
    name for kind in (str, bytes, int, float, list, tuple, dict, set) for name in dir(kind) if not name.startswith("_")
}
LENT_CONTAINERS = (list, dict, set, deque, bytearray)


def names_in(code: CodeType) -> set[str]:
    """Every name that the code, or a function in it, looks up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
    return names


class Tests(Peer):
    """Asks the program; lends it only what tests pass, and of that only what data and callbacks need."""

    def __init__(self, inbox: int, outbox: int, text: str) -> None:
        super().__init__(inbox, outbox)
        self.module, self._loader = module_of(TESTS, text)
        self._named: set[int] = set()
        self._stdout = sys.stdout

    # the program's objects, seen from here

    def ask(self, operation: str, target: int, *arguments: Any, named: dict[str, Any] | None = None) -> Any:
        value = super().ask(operation, target, *arguments, named=named)
        if operation == "member" or (operation == "get" and target in self._named):
            self.name_class(value)
        return value

    def name_class(self, value: Any) -> None:
        """Remembers that the tests name this class (if it is one)."""
        if type(value) is Remote and value._kind == "class":
            self._named.add(value._id)

    def believes(self, remote: Remote, name: str, arguments: tuple[Any, ...]) -> bool:
        if name not in OPINIONS:
            return True
        if remote._class not in self._named:
            if name in ("__contains__", "__len__"):
                raise TypeError("the program gave an object of its own that the tests do not name, not a container")
            return False
        if name in COMPARISONS or name in DIFFERENCES:
            return all(type(argument) is Remote for argument in arguments)
        return True

    def check_attribute(self, remote: Remote, name: str) -> None:
        if remote._kind == "object" and remote._class not in self._named and name in PLAIN_METHODS:
            raise TypeError(
                f"the program gave an object of its own, which the tests do not name: no .{name} of a value"
            )

    def show(self, text: str) -> None:
        if text and sys.stdout is not self._stdout:
            sys.stdout.write(text)

    # our objects, seen from the program

    def _of_tests(self, value: Any) -> bool:
        return type(value).__module__ == TESTS and not isinstance(value, type)

    def _is_callable(self, value: Any) -> bool:
        if isinstance(value, MethodType):
            return self._is_callable(value.__func__)
        if isinstance(value, FunctionType):
            return value.__globals__ is vars(self.module)
        if isinstance(value, BuiltinFunctionType):
            return type(value.__self__) in LENT_CONTAINERS
        return isinstance(value, type) and value.__module__ == TESTS

    def refer(self, value: Any) -> Any:
        if isinstance(value, (FunctionType, BuiltinFunctionType)) and not self._is_callable(value):
            return self._of_library(value)
        if self._is_callable(value) or self._of_tests(value) or hasattr(type(value), "__next__"):
            return self.number(value)
        raise TypeError(f"a {type(value).__name__} cannot be passed to the program: pass plain values")

    def _of_library(self, value: Any) -> dict[str, Any]:
        module, name = getattr(value, "__module__", "") or "", value.__name__
        if module.split(".")[0] not in sys.stdlib_module_names or getattr(sys.modules[module], name, None) != value:
            raise TypeError(f"the function {name!r} cannot be passed to the program")
        return {"t": "library", "module": module, "name": name}

    def allowed(self, operation: str, target: Any, arguments: list[Any]) -> bool:
        if operation == "call":
            return self._is_callable(target)
        name = arguments[0] if arguments else None
        if not isinstance(name, str):
            return False
        if operation == "do":
            if not self._of_tests(target):
                return name in ("__next__", "__iter__") and hasattr(type(target), "__next__")
            return name in (*ACCESS, *COMPARISONS, *ARITHMETIC)
        if not self._of_tests(target) or name.startswith("_"):
            return False
        return operation == "get" or (operation == "set" and not callable(getattr(type(target), name, None)))

    # the run

    def run(self, program: str, entry_point: str) -> None:
        """Loads the program, then runs the tests: their top level, `check(entry_point)`, test_* and TestCase classes.

        Raises what the first failing test raises.
        """
        code = self._loader.get_code(TESTS)
        self.ask("load", 0)
        names = (names_in(code) | {entry_point}) - set(dir(builtins)) - {""}
        bound = self.ask("bind", 0, sorted(names))
        for value in bound.values():
            self.name_class(value)
        space = vars(self.module)
        space.update({name: value for name, value in bound.items() if name in names})
        sys.modules[program] = self._stand_in(program)
        self._loader.exec_module(self.module)
        if entry_point and isinstance(space.get("check"), FunctionType):
            space["check"](space[entry_point])
        for name, value in list(space.items()):
            if name.startswith("test") and isinstance(value, FunctionType):
                value()
            elif isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == TESTS:
                _run_case(value)

    def _stand_in(self, name: str) -> ModuleType:
        """What `from <program> import ...` in tests finds."""
        module = ModuleType(name)
        vars(module)["__getattr__"] = lambda member: self.ask("member", 0, member)
        return module


def _run_case(case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    broken = [*result.failures, *result.errors]
    if broken:
        raise AssertionError(f"{broken[0][0].id()}: {broken[0][1].strip().splitlines()[-1]}")
    if not result.wasSuccessful() or result.testsRun == len(result.skipped):
        raise AssertionError(f"{case.__name__}: {result.testsRun} tests ran, {len(result.skipped)} skipped")


def problem_of(error: BaseException, text: str) -> str:
    """The failing line of the tests and what was raised, in one line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == f"<{TESTS}>"]
    lines = text.splitlines()
    line = frames[-1].lineno if frames else None
    where = f"tests:{line}: {lines[line - 1].strip()}: " if line and line <= len(lines) else ""
    try:
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:
        words = type(error).__name__
    return " ".join((where + words).split())[:MAX_PROBLEM_CHARS]


def judge_program(inbox: int, outbox: int, verdict: int, program: str, text: str, entry_point: str) -> None:
    """Runs the tests and writes `passed`, or `failed` and why, to the descriptor that only this process holds."""
    try:
        Tests(inbox, outbox, text).run(program, entry_point)
        words = "passed\n"
    except BaseException as error:
        words = f"failed\n{problem_of(error, text)}"
    os.write(verdict, words.encode("utf-8", "replace"))
