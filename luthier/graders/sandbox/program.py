"""The process in which the program runs. It never sees the tests: only what they ask it for."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import sys
from collections import namedtuple
from types import CodeType, FunctionType, ModuleType
from typing import Any

from luthier.graders.sandbox.peer import Peer

MAX_PRINTED_CHARS = 64 << 10


class TextLoader(importlib.abc.InspectLoader):
    """Makes a module of a text, so that tracebacks and `inspect` know its lines."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, fullname: str) -> str:
        return self._text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, f"<{fullname}>", "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return False


def module_of(name: str, text: str) -> tuple[ModuleType, TextLoader]:
    """An empty module called `name`, registered but not yet run, and the loader that runs `text` in it."""
    loader = TextLoader(text)
    spec = importlib.util.spec_from_loader(name, loader, origin=f"<{name}>")
    if spec is None:
        raise ImportError(f"no module can be made of {name!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    return module, loader


class Echo(io.TextIOBase):
    """Standard output that also keeps, for the next reply, what was printed."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.kept = stream, ""

    def write(self, text: str) -> int:
        self.kept = (self.kept + text)[:MAX_PRINTED_CHARS]
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def buffer(self) -> Any:
        """The bytes below, which are not kept."""
        return self._stream.buffer


def _is_record(kind: type) -> bool:
    """Is it a named tuple without methods of its own?"""
    fields = getattr(kind, "_fields", None)
    if not issubclass(kind, tuple) or not isinstance(fields, tuple):
        return False
    more = vars(kind).keys() - vars(namedtuple("Bare", fields)).keys()
    return not any(isinstance(vars(kind)[name], FunctionType) for name in more)


class Program(Peer):
    """Serves the objects of the program, all of them: whatever runs here, it may do to itself."""

    def __init__(self, inbox: int, outbox: int, name: str, text: str) -> None:
        super().__init__(inbox, outbox)
        self._name, (self._module, self._loader) = name, module_of(name, text)
        self.echo = Echo(sys.stdout)

    def allowed(self, operation: str, target: Any, arguments: list[Any]) -> bool:
        return True

    def is_data(self, kind: type) -> bool:
        return kind.__module__ != self._name or _is_record(kind)

    def library(self, module: str, name: str) -> Any:
        return getattr(importlib.import_module(module), name)

    def printed(self) -> str:
        text, self.echo.kept = self.echo.kept, ""
        return text

    def perform_more(self, operation: str, target: Any, arguments: list[Any]) -> Any:
        if operation == "load":
            self._loader.exec_module(self._module)
            return None
        if operation == "bind":
            return {name: vars(self._module)[name] for name in arguments[0] if name in vars(self._module)}
        if operation == "member":
            return getattr(self._module, arguments[0])
        if operation == "await":
            return asyncio.run(target)
        return super().perform_more(operation, target, arguments)


def serve_program(inbox: int, outbox: int, name: str, text: str) -> None:
    """Runs the program's top level when it is asked to load, then answers until the tests are done."""
    served = Program(inbox, outbox, name, text)
    with contextlib.redirect_stdout(served.echo):
        served.serve()
