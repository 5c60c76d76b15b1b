"""The language of `coreset.where`: which images may be selected, by what is known of them.

width >= 224 and license in ('cc0', 'cc-by') and not nsfw, caption is not null, column('a b') < 1

An expression of Python's own grammar that is parsed and never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

CONSTANTS = {"null": None, "none": None, "true": True, "false": False}
GRAMMAR = "comparisons, in, is null, and, or, not, of columns and constants"
CONSTANT = (str, bool, int, float, type(None))


def parse(text: str) -> ast.expr:
    """Raises ValueError, saying where it does not parse, or what is not of this language."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        at = f"character {error.offset}" if error.offset else "its end"
        raise ValueError(f"does not parse at {at}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"does not parse: {error}") from None
    if next(_columns(tree), None) is None:
        raise ValueError("names no column")
    _check(tree)
    return tree


def columns(text: str) -> list[str]:
    """Names of all columns in it, as often as they come."""
    return list(_columns(parse(text)))


def _columns(node: ast.AST) -> Iterator[str]:
    name = column_of(node)
    if name is not None:
        yield name
        return
    for child in ast.iter_child_nodes(node):
        yield from _columns(child)


def column_of(node: ast.AST) -> str | None:
    """The column that a name, or `column('…')`, stands for."""
    if isinstance(node, ast.Name) and node.id not in CONSTANTS:
        return node.id
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.keywords:
        return None
    if node.func.id == "column" and len(node.args) == 1:
        [name] = node.args
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return name.value
    return None


def constant_of(node: ast.AST) -> str | bool | int | float | None:
    """The value of a constant. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, CONSTANT):
        return node.value
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = constant_of(node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value
    raise ValueError(f"`{ast.unparse(node)}`: must be a number, a text in quotes, true or false")


def is_null(node: ast.AST) -> bool:
    try:
        return constant_of(node) is None
    except ValueError:
        return False


def _check(node: ast.expr) -> None:
    """What is true or false."""
    if isinstance(node, ast.BoolOp):
        for one in node.values:
            _check(one)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand)
    elif isinstance(node, ast.Compare):
        for left in (node.left, *node.comparators[:-1]):
            _check_value(left)
        for operator, right in zip(node.ops, node.comparators, strict=True):
            _check_comparison(operator, right)
    elif column_of(node) is None:
        raise ValueError(f"`{ast.unparse(node)}`: not of its language: {GRAMMAR}")


def _check_comparison(operator: ast.cmpop, right: ast.expr) -> None:
    several = isinstance(right, ast.Tuple | ast.List)
    if isinstance(operator, ast.In | ast.NotIn):
        if not several:
            raise ValueError(f"`in {ast.unparse(right)}`: must be in a list, as in ('a', 'b')")
        kinds = {_kind_of(constant_of(one)) for one in right.elts}  # type: ignore[attr-defined]
        if type(None) in kinds:
            raise ValueError("in: a null is in no list; write `x is null or x in (…)`")
        if len(kinds) > 1:
            raise ValueError(f"`in {ast.unparse(right)}`: must be all texts or all numbers")
    elif isinstance(operator, ast.Is | ast.IsNot):
        if not is_null(right):
            raise ValueError(f"`is {ast.unparse(right)}`: must be `is null` or `is not null`")
    elif several or is_null(right):
        raise ValueError(f"`{ast.unparse(right)}`: compare with `in` or `is null`")
    else:
        _check_value(right)


def _kind_of(value: object) -> type:
    return float if type(value) is int else type(value)


def _check_value(node: ast.expr) -> None:
    if column_of(node) is None:
        constant_of(node)
