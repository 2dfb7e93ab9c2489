"""Two processes that call each other's objects over pipes: the program lives in one, its tests in the other.

A request names an operation on an object of the receiver; the reply carries a value, or an error by its class names.
While one side waits for a reply it answers requests, so that callbacks work. Mutable arguments come back as they are
after the call. What a side lets the other do to its objects is decided in `allowed`; whom it believes, in `believes`.
"""

from __future__ import annotations

import builtins
import inspect
import json
import operator
import threading
from collections import namedtuple
from collections.abc import Callable, Coroutine
from typing import Any

from luthier.graders.sandbox.wire import (
    MAX_DEPTH,
    MUTABLE,
    PLAIN_BASES,
    TAGGED,
    TAGS,
    is_bare,
    receive,
    restore,
    send,
)  # fmt: skip

_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
ARITHMETIC = tuple(f"__{side}{name}__" for name in _BINARY for side in ("", "r"))
COMPARISONS = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")
ACCESS = (
    "__len__", "__iter__", "__next__", "__reversed__", "__getitem__", "__setitem__", "__delitem__", "__contains__",
    "__bool__", "__str__", "__repr__", "__format__", "__hash__", "__enter__", "__exit__", "__int__", "__float__",
    "__index__", "__round__", "__abs__", "__neg__", "__pos__", "__invert__", "__instancecheck__",
)  # fmt: skip
BY_BUILTIN: dict[str, Callable[..., Any]] = {
    "__len__": len, "__iter__": iter, "__next__": next, "__reversed__": reversed, "__bool__": bool, "__str__": str,
    "__repr__": repr, "__format__": format, "__hash__": hash, "__int__": int, "__float__": float, "__round__": round,
    "__instancecheck__": lambda cls, obj: isinstance(obj, cls),
    "__enter__": lambda obj: type(obj).__enter__(obj),
    "__exit__": lambda obj, *error: type(obj).__exit__(obj, *error),
}  # fmt: skip


def special(name: str, target: Any, arguments: list[Any]) -> Any:
    """The operation behind a special method; `__radd__` and its kind put the object on the right."""
    if name in BY_BUILTIN:
        return BY_BUILTIN[name](target, *arguments)
    if name.startswith("__r") and name not in ("__rshift__", "__reversed__", "__repr__", "__round__"):
        return getattr(operator, f"__{name[3:]}")(arguments[0], target)
    return getattr(operator, name)(target, *arguments)


def _is_builtin_class(value: Any) -> bool:
    return isinstance(value, type) and vars(builtins).get(value.__name__) is value


class RemoteError(Exception):
    """An error of the other side that is no ordinary exception here: SystemExit, KeyboardInterrupt, a broken frame."""


class Remote:
    """An object of the other side."""

    __slots__ = ("_class", "_id", "_kind", "_peer")

    def __init__(self, peer: Peer, reference: dict[str, Any]) -> None:
        fields = {"_peer": peer, "_id": reference["id"], "_kind": reference["kind"], "_class": reference.get("class")}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.ask("call", self._id, *arguments, named=named)

    def __getattr__(self, name: str) -> Any:
        self._peer.check_attribute(self, name)
        return self._peer.ask("get", self._id, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self._id, name, value)


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: Any) -> Any:
        if name == "__exit__":
            arguments = (None, None, None) if arguments[0] is None else (arguments[0], None, None)
        if name == "__eq__" and arguments[0] is self:
            return True
        if not self._peer.believes(self, name, arguments):
            return True if name == "__bool__" else object.__hash__(self) if name == "__hash__" else NotImplemented
        return self._peer.ask("do", self._id, name, *arguments)

    return method


for _name in (*ACCESS, *COMPARISONS, *ARITHMETIC):
    setattr(Remote, _name, _forward(_name))


class Peer:
    """One end. inbox, outbox: file descriptors of the pipes from and to the other side."""

    def __init__(self, inbox: int, outbox: int) -> None:
        self.inbox, self.outbox = inbox, outbox
        self.own: dict[int, Any] = {}
        self.foreign: dict[Any, Any] = {}
        self._numbers: dict[int, int] = {}
        self._lock = threading.RLock()

    # what a side decides

    def allowed(self, operation: str, target: Any, arguments: list[Any]) -> bool:
        """May the other side do this to an object of ours?"""
        raise NotImplementedError

    def believes(self, remote: Remote, name: str, arguments: tuple[Any, ...]) -> bool:
        """Is the remote object asked at all, or does the operation have a fixed answer here?"""
        return True

    def check_attribute(self, remote: Remote, name: str) -> None:
        """Raises when this attribute of a remote object is not looked up here."""

    def is_data(self, kind: type) -> bool:
        """Is this subclass of a plain type (Counter, say) sent as the plain type?"""
        return True

    def refer(self, value: Any) -> Any:
        """The reference of an object of this side. Raises TypeError for what must not be lent."""
        return self.number(value)

    def library(self, module: str, name: str) -> Any:
        """A function of the standard library, by name. Only the program's side takes such words."""
        raise ValueError(f"not a value: {module}.{name}")

    def printed(self) -> str:
        """What was printed since the last reply."""
        return ""

    # values

    def number(self, value: Any) -> dict[str, Any]:
        """A reference: the object's number, its kind, and the number of its class (of other classes, the names)."""
        number = self._numbers.setdefault(id(value), len(self.own) + 1)
        self.own[number] = value
        reference: dict[str, Any] = {"t": "ref", "id": number, "kind": "object"}
        if isinstance(value, type):
            reference["kind"] = "class"
            if issubclass(value, BaseException):
                reference |= {"kind": "error", "mro": self._error_names(value)}
        elif inspect.iscoroutine(value):
            reference["kind"] = "coroutine"
        else:
            reference["class"] = self._numbers.setdefault(id(type(value)), len(self.own) + 1)
            self.own[reference["class"]] = type(value)
        return reference

    def _error_names(self, kind: type) -> list[list[Any]]:
        """[name, None or number] of the classes of an exception, most special first; None for built-in ones."""
        names: list[list[Any]] = []
        for base in kind.__mro__[:-1]:
            known = vars(builtins).get(base.__name__) is base
            number = None if known else self._numbers.setdefault(id(base), len(self.own) + 1)
            if number is not None:
                self.own[number] = base
            names.append([base.__name__, number])
        return names

    def encode(self, value: Any, depth: int = 0) -> Any:
        """Plain JSON data for a value or a reference. Raises ValueError when nested deeper than MAX_DEPTH."""
        if depth > MAX_DEPTH:
            raise ValueError(f"a value nested deeper than {MAX_DEPTH} does not cross")
        if is_bare(value):
            return value
        kind: Any = type(value)
        if kind is Remote:
            return {"t": "yours", "id": value._id}
        if _is_builtin_class(value):
            return {"t": "builtin", "v": value.__name__}
        if kind not in PLAIN_BASES:
            base: Any = next((b for b in PLAIN_BASES if isinstance(value, b)), None) if self.is_data(kind) else None
            if base is None:
                return self.refer(value)
            if base is tuple and hasattr(kind, "_fields"):
                items = [self.encode(item, depth + 1) for item in value]
                return {"t": "namedtuple", "v": items, "name": kind.__name__, "fields": list(kind._fields)}
            return self.encode(base(value), depth)
        if kind is list:
            return [self.encode(item, depth + 1) for item in value]
        data = TAGGED[TAGS[kind]][1](value)
        return {"t": TAGS[kind], "v": self.encode(data, depth + 1) if isinstance(data, list) else data}

    def decode(self, data: Any) -> Any:
        """The value of plain JSON data. Raises ValueError or TypeError for what is none."""
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, dict):
            return data
        tag = data.get("t")
        if tag == "yours":
            return self.own[data["id"]]
        if tag == "ref":
            return self._meet(data)
        if tag == "builtin":
            found = vars(builtins).get(data["v"])
            return found if isinstance(found, type) else self._refuse(data)
        if tag == "library":
            return self.library(str(data["module"]), str(data["name"]))
        if tag == "namedtuple":
            return namedtuple(str(data["name"]), [str(f) for f in data["fields"]])(*self.decode(data["v"]))
        return TAGGED[tag][2](self.decode(data["v"])) if tag in TAGGED else self._refuse(data)

    def _refuse(self, data: Any) -> Any:
        raise ValueError(f"not a value: {str(data)[:80]}")

    def _meet(self, reference: dict[str, Any]) -> Any:
        number, kind = reference["id"], reference["kind"]
        if kind == "error":
            return self._error_class(reference["mro"])
        if kind == "coroutine":
            return self._awaitable(number)
        if number not in self.foreign:
            self.foreign[number] = Remote(self, reference)
        return self.foreign[number]

    def _awaitable(self, number: int) -> Coroutine[Any, Any, Any]:
        async def run() -> Any:
            return self.ask("await", number)

        return run()

    def _error_class(self, names: list[list[Any]]) -> type[Exception]:
        """The class here that stands for an exception class there: the built-in one, or a new one over the nearest."""
        for name, number in names:
            found = vars(builtins).get(name) if number is None else None
            if isinstance(found, type) and issubclass(found, Exception):
                base = found
                break
        else:
            base = RemoteError
        for name, number in reversed(names):
            if number is not None:
                base = self.foreign.setdefault(("error", number), type(str(name), (base,), {}))
        return base

    # requests

    def ask(self, operation: str, target: int, *arguments: Any, named: dict[str, Any] | None = None) -> Any:
        """Requests an operation of the other side and returns its value, or raises its error."""
        passed = [*arguments, *(named or {}).values()]
        message = {
            "ask": operation,
            "target": target,
            "args": [self.encode(value) for value in passed],
            "names": list(named or {}),
        }
        with self._lock:
            send(self.outbox, message)
            reply = self._reply()
        if "error" in reply:
            error = self._error_of(reply["error"])
            if isinstance(error, (StopIteration, StopAsyncIteration)) and arguments[:1] != ("__next__",):
                error = RemoteError("StopIteration outside of an iterator")  # it would end a map() here, unseen
            raise error
        for place, content in reply.get("changed", {}).items():
            restore(passed[int(place)], self.decode(content))
        return self.decode(reply["reply"])

    def _reply(self) -> dict[str, Any]:
        while True:
            message = receive(self.inbox)
            if not isinstance(message, dict):
                raise ValueError("not a message")
            if "ask" not in message:
                self.show(message.get("printed", ""))
                return message
            self.answer(message)

    def show(self, text: str) -> None:
        """Text that the other side printed during a request."""

    def serve(self) -> None:
        """Answers requests until the other side is gone."""
        while True:
            try:
                message = receive(self.inbox)
            except EOFError:
                return
            self.answer(message)

    def answer(self, message: dict[str, Any]) -> None:
        """Does what a request asks, and replies with the value or the error."""
        try:
            arguments = [self.decode(item) for item in message["args"]]
            split = len(arguments) - len(message["names"])
            before = {i: json.dumps(message["args"][i]) for i, a in enumerate(arguments) if isinstance(a, MUTABLE)}
            named = dict(zip(message["names"], arguments[split:], strict=True))
            value = self._perform(message["ask"], message["target"], arguments[:split], named)
            after = {i: self.encode(arguments[i]) for i in before}
            changed = {str(i): content for i, content in after.items() if json.dumps(content) != before[i]}
            reply = {"reply": self.encode(value), "changed": changed}
        except BaseException as error:
            reply = {"error": self._described(error)}
        try:
            send(self.outbox, {**reply, "printed": self.printed()})
        except ValueError as error:
            send(self.outbox, {"error": self._described(error)})

    def _perform(self, operation: str, number: int, arguments: list[Any], named: dict[str, Any]) -> Any:
        target: Any = self.own.get(number)
        if not self.allowed(operation, target, arguments):
            raise TypeError(f"{operation} of a {type(target).__name__} is not possible from here")
        if operation == "call":
            return target(*arguments, **named)
        if operation == "get":
            return getattr(target, arguments[0])
        if operation == "set":
            return setattr(target, *arguments)
        if operation == "do" and arguments[0] in (*ACCESS, *COMPARISONS, *ARITHMETIC):
            return special(arguments[0], target, arguments[1:])
        return self.perform_more(operation, target, arguments)

    def perform_more(self, operation: str, target: Any, arguments: list[Any]) -> Any:
        """Operations that only one side knows."""
        raise TypeError(f"there is no operation {operation!r}")

    def _described(self, error: BaseException) -> dict[str, Any]:
        plain = all(is_bare(a) and (not isinstance(a, str) or len(a) < 10_000) for a in error.args)
        try:
            text = str(error)[:2000]
        except Exception:
            text = ""
        return {"mro": self._error_names(type(error)), "args": list(error.args) if plain else None, "text": text}

    def _error_of(self, described: dict[str, Any]) -> Exception:
        kind = self._error_class(described["mro"])
        arguments = described["args"] if isinstance(described.get("args"), list) else [str(described.get("text"))]
        if kind is RemoteError:
            arguments = [f"{described['mro'][0][0]}: {described.get('text')}"]
        try:
            return kind(*arguments)
        except Exception:
            return RemoteError(str(described.get("text")))
