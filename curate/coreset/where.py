"""`coreset.where` over tables: as SQL has it, what is unknown is not so, and neither is its
opposite."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.errors import CurateError, one_line
from curate.settings import where

Expression = Any  # pc.Expression, which has no types
ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], Expression]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def holds(text: str, table: pa.Table) -> NDArray[np.bool_]:
    """(N,) of each row, whether it does. Raises CurateError for what cannot be compared."""
    expression = _of(where.parse(text))
    numbered = table.append_column("", pa.array(np.arange(len(table))))
    try:
        rows = numbered.filter(expression)[""].to_numpy()
    except (pa.ArrowException, TypeError) as error:
        types = ", ".join(f"{f.name} is {f.type}" for f in table.schema)
        raise CurateError(f"coreset.where: {one_line(error, 160)}; {types}") from error
    found = np.zeros(len(table), bool)
    found[rows] = True
    return found


def _of(node: ast.expr) -> Expression:
    if isinstance(node, ast.BoolOp):
        both = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return reduce(both, map(_of, node.values))
    if isinstance(node, ast.UnaryOp):
        return ~_of(node.operand)
    if isinstance(node, ast.Compare):
        lefts = [node.left, *node.comparators]
        each = map(_comparison, lefts, node.ops, node.comparators)
        return reduce(operator.and_, each)
    return pc.field(where.column_of(node))


def _comparison(left: ast.expr, compare: ast.cmpop, right: ast.expr) -> Expression:
    value = _value(left)
    if isinstance(compare, ast.Is | ast.IsNot):
        return value.is_null() if isinstance(compare, ast.Is) else value.is_valid()
    if isinstance(compare, ast.In | ast.NotIn):
        assert isinstance(right, ast.Tuple | ast.List)
        inside = value.isin([where.constant_of(one) for one in right.elts])
        found = pc.if_else(value.is_null(), pc.scalar(None), inside)  # it would say false
        return found if isinstance(compare, ast.In) else ~found
    return ORDERS[type(compare)](value, _value(right))


def _value(node: ast.expr) -> Expression:
    name = where.column_of(node)
    return pc.scalar(where.constant_of(node)) if name is None else pc.field(name)
