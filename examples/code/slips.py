"""Answers that are nearly right: one call swapped for another function, or one part of the expression left out."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from pieces import Piece

WRAPPERS = ("change", "keep", "order")
"""Calls that may be left out: they give what they take."""


def slips(code: str, used: Sequence[Piece], everything: Sequence[Piece]) -> list[str]:
    """Every such answer, each with one slip."""
    tree = ast.parse(code)
    kinds = {piece.path: piece.kind for piece in used}
    found = [
        code.replace(f"{old.path}(", f"{new.path}(") for old, new in _swaps(used, everything) if f"{old.path}(" in code
    ]
    found += [
        code.replace(f"key={old.path}", f"key={new.path}")
        for old, new in _swaps(used, everything)
        if f"key={old.path}" in code
    ]
    for node in ast.walk(tree):
        for shorter in _shorter(node, kinds):
            found.append(ast.unparse(_Replace(node, shorter).visit(ast.parse(code))))
    return found


def _swaps(used: Sequence[Piece], everything: Sequence[Piece]) -> Iterator[tuple[Piece, Piece]]:
    for old in used:
        for new in everything:
            alike = (old.module, old.kind, old.parameters) == (new.module, new.kind, new.parameters)
            if alike and new not in used:
                yield old, new


def _shorter(node: ast.AST, kinds: dict[str, str]) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call) and kinds.get(ast.unparse(node.func)) in WRAPPERS:
        yield node.args[0]
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp):
        yield from (node.left, node.right)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        yield node.value
    elif isinstance(node, ast.ListComp) and node.generators[0].ifs:
        bare = ast.comprehension(node.generators[0].target, node.generators[0].iter, [], 0)
        yield ast.ListComp(node.elt, [bare])


class _Replace(ast.NodeTransformer):
    """Puts one expression in the place of another, which is found again by where it stands."""

    def __init__(self, old: ast.AST, new: ast.expr) -> None:
        self._old, self._new = ast.dump(old, include_attributes=True), new

    def visit(self, node: ast.AST) -> ast.AST:
        if ast.dump(node, include_attributes=True) == self._old:
            return self._new
        return self.generic_visit(node)
