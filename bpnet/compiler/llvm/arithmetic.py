"""Operations on numbers or vectors of them as machine code, and the functions that processors don't have.

Each function is good to a few units in the last place, and hands on what is not a number.
"""

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm.builder import I32, I64, REALS, SIZES, Function, suffix
from bpnet.compiler.ops import COMPARISON, LOGICAL, OPERATIONS
from bpnet.compiler.random import TRIPLE32


def constant(real: Any, value: Any, lanes: int) -> Any:
    values = value if isinstance(value, list) else [value] * lanes
    return ir.Constant(ir.VectorType(real, lanes), values) if lanes > 1 else ir.Constant(real, values[0])


def as_operand(b: Any, value: Any, dtype: str, real: Any) -> Any:
    """What was loaded as a kernel computes with it: whole numbers become numbers of its type, truth values bits."""
    if dtype in REALS:
        return value
    if dtype == "bool":
        return b.icmp_signed("!=", value, ir.Constant(value.type, None))
    target = ir.VectorType(real, value.type.count) if isinstance(value.type, ir.VectorType) else real
    return b.sitofp(value, target)


def as_stored(b: Any, value: Any, dtype: str) -> Any:
    """The other way round: what a kernel has computed as it is stored."""
    if dtype in REALS:
        return value
    kind = ir.IntType(8 * SIZES[dtype])
    target = ir.VectorType(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind
    return b.zext(value, target) if dtype == "bool" else b.fptosi(value, target)


def triple32(b: Any, x: Any, word: Callable[[int], Any]) -> Any:
    """See `bpnet.compiler.random.TRIPLE32`."""
    for shift, factor in TRIPLE32:
        x = b.mul(b.xor(x, b.lshr(x, word(shift))), word(factor))
    return b.xor(x, b.lshr(x, word(14)))


def operate(f: Function, op: str, args: list[Any], real: Any) -> Any:
    """One operation on values or vectors."""
    return Arithmetic(f, args[0].type, real).operate(op, args)


class Arithmetic:
    """Operations on one kind of value: numbers of a type, or vectors of them."""

    def __init__(self, f: Function, kind: Any, real: Any) -> None:
        self.f, self.b, self.double = f, f.b, isinstance(real, ir.DoubleType)
        self.lanes = kind.count if isinstance(kind, ir.VectorType) else 1
        self.kind = ir.VectorType(real, self.lanes) if self.lanes > 1 else real
        whole = I64 if self.double else I32
        self.whole = ir.VectorType(whole, self.lanes) if self.lanes > 1 else whole

    def real(self, x: float) -> Any:
        return ir.Constant(self.kind, [x] * self.lanes if self.lanes > 1 else x)

    def integer(self, n: int) -> Any:
        return ir.Constant(self.whole, [n] * self.lanes if self.lanes > 1 else n)

    def intrinsic(self, name: str, *args: Any) -> Any:
        return self.f.intrinsic(f"{name}.{suffix(self.kind)}", self.kind, args)

    def operate(self, op: str, a: list[Any]) -> Any:
        operation = OPERATIONS[op]
        if operation.kind == COMPARISON and op not in LOGICAL:
            if suffix(a[0].type).endswith("i1"):
                return self.b.icmp_signed(operation.llvm, *a)
            compare = self.b.fcmp_unordered if op == "not_equal" else self.b.fcmp_ordered
            return compare(operation.llvm, *a)
        return getattr(self if hasattr(self, operation.llvm) else self.b, operation.llvm)(*a)

    def copy(self, x: Any) -> Any:
        return x

    def maximum(self, x: Any, y: Any) -> Any:
        return self._chosen(">=", x, y)

    def minimum(self, x: Any, y: Any) -> Any:
        return self._chosen("<=", x, y)

    def _chosen(self, sign: str, x: Any, y: Any) -> Any:
        """x where it compares so with y or is not a number, else y, which may be none."""
        b = self.b
        return b.select(b.or_(b.fcmp_ordered(sign, x, y), b.fcmp_unordered("uno", x, x)), x, y)

    def number_of_truth(self, x: Any) -> Any:
        return self.b.select(x, self.real(1.0), self.real(0.0))

    def sqrt(self, x: Any) -> Any:
        return self.intrinsic("sqrt", x)

    def fabs(self, x: Any) -> Any:
        return self.intrinsic("fabs", x)

    def sign(self, x: Any) -> Any:
        b, zero = self.b, self.real(0.0)
        low = b.select(b.fcmp_ordered("<", x, zero), self.real(-1.0), x)
        return b.select(b.fcmp_ordered(">", x, zero), self.real(1.0), low)

    def polynomial(self, x: Any, coefficients: list[float]) -> Any:
        value = self.real(coefficients[-1])
        for c in coefficients[-2::-1]:
            value = self.intrinsic("fma", value, x, self.real(c))
        return value

    def power_of_two(self, n: Any) -> Any:
        """2**n for whole n within the exponents of normal numbers."""
        bits, bias = (52, 1023) if self.double else (23, 127)
        return self.b.bitcast(self.b.shl(self.b.add(n, self.integer(bias)), self.integer(bits)), self.kind)

    def exp(self, x: Any) -> Any:
        """2**n exp(r) with |r| <= log(2) / 2; 2**n in two factors, for small results."""
        r, n = self._reduced(x)
        series = self.polynomial(r, [1.0 / math.factorial(k) for k in range(14 if self.double else 8)])
        half = self.b.ashr(n, self.integer(1))
        first, second = self.power_of_two(half), self.power_of_two(self.b.sub(n, half))
        return self.b.fmul(self.b.fmul(series, first), second)

    def expm1(self, x: Any) -> Any:
        """2**n (exp(r) - 1) + 2**n - 1, of which nothing is lost where n is 0."""
        b = self.b
        r, n = self._reduced(x)
        series = b.fmul(r, self.polynomial(r, [1.0 / math.factorial(k + 1) for k in range(14 if self.double else 8)]))
        half = b.ashr(n, self.integer(1))
        other = b.sub(n, half)
        first, second = self.power_of_two(half), self.power_of_two(other)
        one = self.power_of_two(b.sub(self.integer(0), other))  # over the second factor
        return b.fmul(self.intrinsic("fma", series, first, b.fsub(first, one)), second)

    def _reduced(self, x: Any) -> tuple[Any, Any]:
        """r and n with x = n log(2) + r."""
        b = self.b
        low, high = (-750.0, 720.0) if self.double else (-110.0, 100.0)
        x = b.select(b.fcmp_ordered("<", x, self.real(low)), self.real(low), x)
        x = b.select(b.fcmp_ordered(">", x, self.real(high)), self.real(high), x)
        shift = 1.5 * 2.0 ** (52 if self.double else 23)  # adding it leaves the nearest whole number in the last bits
        moved = self.intrinsic("fma", x, self.real(1.0 / math.log(2.0)), self.real(shift))
        n = b.sub(b.bitcast(moved, self.whole), b.bitcast(self.real(shift), self.whole))
        whole = b.fsub(moved, self.real(shift))
        first, rest = _LOG_2[self.double]
        r = self.intrinsic("fma", whole, self.real(-first), x)
        return self.intrinsic("fma", whole, self.real(-rest), r), n

    def log(self, x: Any) -> Any:
        return self._log(x, None)

    def log1p(self, x: Any) -> Any:
        one = self.real(1.0)
        u = self.b.fadd(x, one)
        return self.b.select(self.b.fcmp_ordered("==", u, one), x, self._log(u, x))  # which may be too small to halve

    def _log(self, x: Any, less: Any) -> Any:
        """n log(2) + log(1 + f) with 1 + f = x / 2**n near 1, and log(1 + f) = 2 artanh(s) with s = f / (f + 2).

        Where `less` is given, x is 1 + less as rounded, and `less` is f where n is 0.
        """
        b, bits = self.b, 52 if self.double else 23
        small = b.fcmp_ordered("<", x, self.real(2.0 ** (-1022 if self.double else -126)))
        up = 54 if self.double else 25
        y = b.select(small, b.fmul(x, self.real(2.0**up)), x)
        low = b.bitcast(self.real(math.sqrt(0.5)), self.whole)
        n = b.ashr(b.sub(b.bitcast(y, self.whole), low), self.integer(bits))
        m = b.bitcast(b.sub(b.bitcast(y, self.whole), b.shl(n, self.integer(bits))), self.kind)
        f = b.fsub(m, self.real(1.0))
        if less is not None:
            f = b.select(b.icmp_signed("==", n, self.integer(0)), less, f)
        n = b.sub(n, b.select(small, self.integer(up), self.integer(0)))
        whole = b.sitofp(n, self.kind)
        s = b.fdiv(f, b.fadd(f, self.real(2.0)))
        z = b.fmul(s, s)
        series = self.polynomial(z, [2.0 / (2 * k + 1) for k in range(1, 12 if self.double else 6)])
        first, rest = _LOG_2[self.double]
        tail = self.intrinsic("fma", whole, self.real(rest), b.fmul(b.fmul(s, z), series))
        value = self.intrinsic("fma", whole, self.real(first), b.fadd(b.fadd(s, s), tail))
        value = b.select(b.fcmp_ordered("==", x, self.real(math.inf)), x, value)
        value = b.select(b.fcmp_ordered("==", x, self.real(0.0)), self.real(-math.inf), value)
        return b.select(b.fcmp_unordered("<", x, self.real(0.0)), self.real(math.nan), value)

    def tanh(self, x: Any) -> Any:
        """-t / (t + 2) with t = exp(-2 |x|) - 1, and the sign of x."""
        b = self.b
        t = self.expm1(b.fmul(self.intrinsic("fabs", x), self.real(-2.0)))
        value = b.fdiv(b.fneg(t), b.fadd(t, self.real(2.0)))
        return self.intrinsic("copysign", value, x)


_LOG_2 = {False: (0.693359375, math.log(2.0) - 0.693359375), True: (0.693145751953125, 1.42860682030941723212e-6)}
"""log(2) as a number of few bits, whose products with whole numbers are exact, and the rest."""
