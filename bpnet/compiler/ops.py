"""Every operation that a graph can hold, once: what it takes, what it costs, and how each target spells it.

Symbols' operators, the namespace that functions see while they are traced, the emitters and the interpreter all read
this table, so an operation is added here and nowhere else (one that LLVM's builder does not have gets a method in
llvm/arithmetic.py besides).
"""

import math
from dataclasses import dataclass

ELEMENTWISE, COMPARISON = "elementwise", "comparison"
ROW_REDUCTION, COLUMN_REDUCTION, FULL_REDUCTION = "row reduction", "column reduction", "full reduction"
GENERATOR, STRUCTURE = "generator", "structure"


@dataclass(frozen=True)
class Operation:
    """One operation of graphs.

    kind: ELEMENTWISE and COMPARISON give a value for each entry; reductions one for each row (row-wise), one for each
    column (column-wise) or one in all (full); a GENERATOR makes values of an entry's position; a STRUCTURE moves or
    multiplies whole arrays.
    llvm: the predicate of a comparison; else a method of llvm/arithmetic's `Arithmetic`, or of llvmlite's builder.
    cuda: an expression of C++ as a format string, in which T is the type of numbers.
    python: the sign of Python's operator.
    costly: whether its results are worth keeping where two kernels need them.
    joined_by, start: of a reduction, the operation that joins two results, and the result of nothing.
    """

    name: str
    arity: int
    kind: str
    llvm: str = ""
    cuda: str = ""
    python: str = ""
    costly: bool = False
    joined_by: str = ""
    start: float = 0.0


_TABLE = [
    Operation("add", 2, ELEMENTWISE, "fadd", "{0} + {1}", "+"),
    Operation("subtract", 2, ELEMENTWISE, "fsub", "{0} - {1}", "-"),
    Operation("multiply", 2, ELEMENTWISE, "fmul", "{0} * {1}", "*"),
    Operation("divide", 2, ELEMENTWISE, "fdiv", "{0} / {1}", "/"),
    Operation("negative", 1, ELEMENTWISE, "fneg", "-{0}", "-"),
    Operation("abs", 1, ELEMENTWISE, "fabs", "fabs({0})"),
    Operation("sign", 1, ELEMENTWISE, "sign", "{0} > T(0) ? T(1) : {0} < T(0) ? T(-1) : {0}"),
    Operation("sqrt", 1, ELEMENTWISE, "sqrt", "sqrt({0})"),
    Operation("trunc", 1, ELEMENTWISE, "trunc", "trunc({0})"),
    Operation("exp", 1, ELEMENTWISE, "exp", "exp({0})", costly=True),
    Operation("log", 1, ELEMENTWISE, "log", "log({0})", costly=True),
    Operation("log1p", 1, ELEMENTWISE, "log1p", "log1p({0})", costly=True),
    Operation("expm1", 1, ELEMENTWISE, "expm1", "expm1({0})", costly=True),
    Operation("tanh", 1, ELEMENTWISE, "tanh", "tanh({0})", costly=True),
    Operation("sin", 1, ELEMENTWISE, "sin", "sin({0})", costly=True),
    Operation("cos", 1, ELEMENTWISE, "cos", "cos({0})", costly=True),
    Operation("erf", 1, ELEMENTWISE, cuda="erf({0})", costly=True),  # NumPy and LLVM use `Backend.erf`, its definition
    # These two hand on what is not a number, as the libraries of C and of processors do not.
    Operation("maximum", 2, ELEMENTWISE, "maximum", "{0} >= {1} || {0} != {0} ? {0} : {1}"),
    Operation("minimum", 2, ELEMENTWISE, "minimum", "{0} <= {1} || {0} != {0} ? {0} : {1}"),
    Operation("where", 3, ELEMENTWISE, "select", "{0} ? {1} : {2}"),
    Operation("astype", 1, ELEMENTWISE, "number_of_truth", "{0} ? T(1) : T(0)"),
    Operation("greater", 2, COMPARISON, ">", "{0} > {1}", ">"),
    Operation("greater_equal", 2, COMPARISON, ">=", "{0} >= {1}", ">="),
    Operation("less", 2, COMPARISON, "<", "{0} < {1}", "<"),
    Operation("less_equal", 2, COMPARISON, "<=", "{0} <= {1}", "<="),
    Operation("equal", 2, COMPARISON, "==", "{0} == {1}", "=="),
    Operation("not_equal", 2, COMPARISON, "!=", "{0} != {1}", "!="),
    Operation("logical_and", 2, COMPARISON, "and_", "{0} && {1}", "&"),
    Operation("logical_or", 2, COMPARISON, "or_", "{0} || {1}", "|"),
    Operation("logical_not", 1, COMPARISON, "not_", "!{0}", "~"),
    Operation("row_sum", 1, ROW_REDUCTION, joined_by="add"),
    Operation("row_max", 1, ROW_REDUCTION, joined_by="maximum", start=-math.inf),
    Operation("row_min", 1, ROW_REDUCTION, joined_by="minimum", start=math.inf),
    Operation("column_sum", 1, COLUMN_REDUCTION, joined_by="add"),
    Operation("full_sum", 1, FULL_REDUCTION, joined_by="add"),
    Operation("full_max", 1, FULL_REDUCTION, joined_by="maximum", start=-math.inf),
    Operation("full_min", 1, FULL_REDUCTION, joined_by="minimum", start=math.inf),
    *(Operation(name, 1, STRUCTURE, "copy", "{0}") for name in ("copy", "place")),
    *(Operation(name, 0, GENERATOR) for name in ("mask", "uniform", "positions", "table")),
    *(Operation(name, 0, STRUCTURE) for name in ("memory", "number", "concat", "beside", "called")),
    *(Operation(name, 1, STRUCTURE) for name in ("view", "window", "transpose", "strided")),
    *(Operation(name, 2, STRUCTURE) for name in ("take", "scatter_add", "matmul")),
]
OPERATIONS = {operation.name: operation for operation in _TABLE}


def _named(*kinds: str) -> frozenset[str]:
    return frozenset(operation.name for operation in _TABLE if operation.kind in kinds)


COMPARISONS = _named(COMPARISON)
LOGICAL = frozenset({"logical_and", "logical_or", "logical_not"})
"""Those of truth values."""
POINTWISE = _named(ELEMENTWISE, COMPARISON)
"""What gives a value for each entry of its arguments."""
ROW_REDUCTIONS = _named(ROW_REDUCTION)
REDUCTIONS = _named(ROW_REDUCTION, COLUMN_REDUCTION, FULL_REDUCTION)
GENERATORS = _named(GENERATOR)
RANDOM = frozenset({"mask", "uniform"})
"""What is drawn for each entry: a keep-mask, and a number between 0 and 1 (see `Backend.uniform`)."""
BY_COLUMN = GENERATORS - RANDOM
"""Those that make a value for each column: its number, or the one that a table of known numbers has there."""
INTO_MEMORY = frozenset({"matmul", "take", "scatter_add", "strided", "called"})
"""What is a command of its own, with its result in memory."""
LOOKS = frozenset({"view", "window"})
"""What looks at another array's memory: at entries that follow each other, or at some columns of each of its rows."""
JOINS = frozenset({"concat", "beside"})
"""Arrays whose parts are computed into their memory: one after the other, or each into some columns of every row."""
COSTLY = frozenset(operation.name for operation in _TABLE if operation.costly)
SIGNS = {operation.name: operation.python for operation in _TABLE if operation.python}
"""Python's sign of an operation, by its name."""
