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
    numpy: the name of NumPy's function.
    llvm: the predicate of a comparison; else a method of llvm/arithmetic's `Arithmetic`, or of llvmlite's builder.
    cuda: an expression of C++ as a format string, in which T is the type of numbers.
    python: the sign of Python's operator.
    costly: whether its results are worth keeping where two kernels need them.
    joined_by, start: of a reduction, the operation that joins two results, and the result of nothing.
    """

    name: str
    arity: int
    kind: str
    numpy: str = ""
    llvm: str = ""
    cuda: str = ""
    python: str = ""
    costly: bool = False
    joined_by: str = ""
    start: float = 0.0


_TABLE = [
    Operation("add", 2, ELEMENTWISE, "add", "fadd", "{0} + {1}", "+"),
    Operation("subtract", 2, ELEMENTWISE, "subtract", "fsub", "{0} - {1}", "-"),
    Operation("multiply", 2, ELEMENTWISE, "multiply", "fmul", "{0} * {1}", "*"),
    Operation("divide", 2, ELEMENTWISE, "divide", "fdiv", "{0} / {1}", "/"),
    Operation("negative", 1, ELEMENTWISE, "negative", "fneg", "-{0}", "-"),
    Operation("abs", 1, ELEMENTWISE, "abs", "fabs", "fabs({0})"),
    Operation("sign", 1, ELEMENTWISE, "sign", "sign", "{0} > T(0) ? T(1) : {0} < T(0) ? T(-1) : {0}"),
    Operation("sqrt", 1, ELEMENTWISE, "sqrt", "sqrt", "sqrt({0})"),
    Operation("exp", 1, ELEMENTWISE, "exp", "exp", "exp({0})", costly=True),
    Operation("log", 1, ELEMENTWISE, "log", "log", "log({0})", costly=True),
    Operation("log1p", 1, ELEMENTWISE, "log1p", "log1p", "log1p({0})", costly=True),
    Operation("expm1", 1, ELEMENTWISE, "expm1", "expm1", "expm1({0})", costly=True),
    Operation("tanh", 1, ELEMENTWISE, "tanh", "tanh", "tanh({0})", costly=True),
    Operation("erf", 1, ELEMENTWISE, cuda="erf({0})", costly=True),  # NumPy and LLVM use `Backend.erf`, its definition
    # These two hand on what is not a number, as the libraries of C and of processors do not.
    Operation("maximum", 2, ELEMENTWISE, "maximum", "maximum", "{0} >= {1} || {0} != {0} ? {0} : {1}"),
    Operation("minimum", 2, ELEMENTWISE, "minimum", "minimum", "{0} <= {1} || {0} != {0} ? {0} : {1}"),
    Operation("where", 3, ELEMENTWISE, "where", "select", "{0} ? {1} : {2}"),
    Operation("astype", 1, ELEMENTWISE, "asarray", "number_of_truth", "{0} ? T(1) : T(0)"),
    Operation("greater", 2, COMPARISON, "greater", ">", "{0} > {1}", ">"),
    Operation("greater_equal", 2, COMPARISON, "greater_equal", ">=", "{0} >= {1}", ">="),
    Operation("less", 2, COMPARISON, "less", "<", "{0} < {1}", "<"),
    Operation("less_equal", 2, COMPARISON, "less_equal", "<=", "{0} <= {1}", "<="),
    Operation("equal", 2, COMPARISON, "equal", "==", "{0} == {1}", "=="),
    Operation("not_equal", 2, COMPARISON, "not_equal", "!=", "{0} != {1}", "!="),
    Operation("logical_and", 2, COMPARISON, "logical_and", "and_", "{0} && {1}", "&"),
    Operation("logical_or", 2, COMPARISON, "logical_or", "or_", "{0} || {1}", "|"),
    Operation("logical_not", 1, COMPARISON, "logical_not", "not_", "!{0}", "~"),
    *(
        Operation(f"{prefix}_{name}", 1, kind, name, joined_by=joined_by, start=start)
        for prefix, kind in (("row", ROW_REDUCTION), ("column", COLUMN_REDUCTION), ("full", FULL_REDUCTION))
        for name, joined_by, start in (
            ("sum", "add", 0.0),
            ("max", "maximum", -math.inf),
            ("min", "minimum", math.inf),
        )
        if (prefix, name) not in (("column", "max"), ("column", "min"))
    ),
    Operation("copy", 1, STRUCTURE, "asarray", "copy", "{0}"),
    Operation("mask", 0, GENERATOR),
    Operation("positions", 0, GENERATOR),
    Operation("memory", 0, STRUCTURE),
    Operation("number", 0, STRUCTURE),
    Operation("view", 1, STRUCTURE),
    Operation("transpose", 1, STRUCTURE),
    Operation("strided", 1, STRUCTURE),
    Operation("concat", 0, STRUCTURE),
    Operation("take", 2, STRUCTURE, "take"),
    Operation("called", 0, STRUCTURE),
    Operation("matmul", 2, STRUCTURE, "matmul"),
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
INTO_MEMORY = frozenset({"matmul", "take", "strided", "called"})
"""What is a command of its own, with its result in memory."""
COSTLY = frozenset(operation.name for operation in _TABLE if operation.costly)
SIGNS = {operation.name: operation.python for operation in _TABLE if operation.python}
"""Python's sign of an operation, by its name."""
