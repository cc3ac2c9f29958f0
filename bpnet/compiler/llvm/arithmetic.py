"""Operations on numbers or vectors of them as machine code, and the functions that processors don't have.

Each function is good to a few units in the last place, and hands on what is not a number.
"""

import math
from functools import partial
from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm.angles import quarter_turns
from bpnet.compiler.llvm.builder import I32, I64, REALS, SIZES, Function, constant, fuses, lanes_of, suffix, vector
from bpnet.compiler.ops import COMPARISON, LOGICAL, OPERATIONS
from bpnet.compiler.random import TRIPLE32


def as_operand(b: Function, value: Any, dtype: str, real: Any) -> Any:
    """What was loaded as a kernel computes with it: whole numbers become numbers of its type, truth values bits."""
    if dtype in REALS:
        return value
    if dtype == "bool":
        return b.icmp_signed("!=", value, ir.Constant(value.type, None))
    return b.sitofp(value, vector(real, lanes_of(value)))


def as_stored(b: Function, value: Any, dtype: str) -> Any:
    """The other way round: what a kernel has computed as it is stored."""
    if dtype in REALS:
        return value
    target = vector(ir.IntType(8 * SIZES[dtype]), lanes_of(value))
    return b.zext(value, target) if dtype == "bool" else b.fptosi(value, target)


def triple32(b: Function, x: Any) -> Any:
    """See `bpnet.compiler.random.TRIPLE32`."""

    def word(n: int) -> Any:
        return constant(I32, n, lanes_of(x))

    for shift, factor in TRIPLE32:
        x = b.mul(b.xor(x, b.lshr(x, word(shift))), word(factor))
    return b.xor(x, b.lshr(x, word(14)))


def operate(b: Function, op: str, args: list[Any], real: Any) -> Any:
    """One operation on values or vectors."""
    return Arithmetic(b, lanes_of(args[0]), real).operate(op, args)


class Arithmetic:
    """Operations on one kind of value: numbers of a type, or vectors of them."""

    def __init__(self, b: Function, lanes: int, real: Any) -> None:
        self.b, self.lanes, self.is_double = b, lanes, isinstance(real, ir.DoubleType)
        self.one, self.one_whole = real, I64 if self.is_double else I32
        self.real, self.integer = (partial(constant, kind, lanes=lanes) for kind in (self.one, self.one_whole))
        self.kind, self.whole = self.real(0.0).type, self.integer(0).type
        self.bits, self.least = (
            (52, -1022) if self.is_double else (23, -126)
        )  # of a fraction; exponent of normal numbers

    def intrinsic(self, name: str, *args: Any) -> Any:
        return self.b.intrinsic(f"{name}.{suffix(self.kind)}", self.kind, args)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z, rounded once where the processor can: nothing here that uses it needs that, but for a bit or so."""
        return self.intrinsic("fma", x, y, z) if fuses() else self.b.fadd(self.b.fmul(x, y), z)

    def operate(self, op: str, a: list[Any]) -> Any:
        operation = OPERATIONS[op]
        if operation.kind == COMPARISON and op not in LOGICAL:
            if suffix(a[0].type).endswith("i1"):
                return self.b.icmp_signed(operation.llvm, *a)
            compare = self.b.fcmp_unordered if op == "not_equal" else self.b.fcmp_ordered
            return compare(operation.llvm, *a)
        if operation.llvm in ("sqrt", "fabs", "trunc"):
            return self.intrinsic(operation.llvm, *a)
        return getattr(self if hasattr(self, operation.llvm) else self.b, operation.llvm)(*a)

    def copy(self, x: Any) -> Any:
        return x

    def maximum(self, x: Any, y: Any, sign: str = ">=") -> Any:
        """x where it compares so with y or is not a number, else y, which may be none."""
        b = self.b
        return b.select(b.or_(b.fcmp_ordered(sign, x, y), b.fcmp_unordered("uno", x, x)), x, y)

    def minimum(self, x: Any, y: Any) -> Any:
        return self.maximum(x, y, "<=")

    def number_of_truth(self, x: Any) -> Any:
        return self.b.select(x, self.real(1.0), self.real(0.0))

    def sign(self, x: Any) -> Any:
        b, zero = self.b, self.real(0.0)
        low = b.select(b.fcmp_ordered("<", x, zero), self.real(-1.0), x)
        return b.select(b.fcmp_ordered(">", x, zero), self.real(1.0), low)

    def polynomial(self, x: Any, coefficients: list[float]) -> Any:
        value = self.real(coefficients[-1])
        for c in coefficients[-2::-1]:
            value = self.multiply_add(value, x, self.real(c))
        return value

    def power_of_two(self, n: Any) -> Any:
        """2**n for whole n within the exponents of normal numbers."""
        biased = self.b.add(n, self.integer(1 - self.least))
        return self.b.bitcast(self.b.shl(biased, self.integer(self.bits)), self.kind)

    def exp(self, x: Any) -> Any:
        """2**n exp(r) with |r| <= log(2) / 2; 2**n in two factors, for small results."""
        r, first, second, _ = self._reduced(x)
        series = self.polynomial(r, [1.0 / math.factorial(k) for k in range(14 if self.is_double else 8)])
        return self.b.fmul(self.b.fmul(series, first), second)

    def expm1(self, x: Any) -> Any:
        """2**n (exp(r) - 1) + 2**n - 1, of which nothing is lost where n is 0."""
        b, (r, first, second, other) = self.b, self._reduced(x)
        series = b.fmul(
            r, self.polynomial(r, [1.0 / math.factorial(k + 1) for k in range(14 if self.is_double else 8)])
        )
        one = self.power_of_two(b.sub(self.integer(0), other))  # over the second factor
        return b.fmul(self.multiply_add(series, first, b.fsub(first, one)), second)

    def _reduced(self, x: Any) -> tuple[Any, Any, Any, Any]:
        """r, 2**(n - m), 2**m and m with x = n log(2) + r and m about n / 2."""
        b = self.b
        low, high = (-750.0, 720.0) if self.is_double else (-110.0, 100.0)
        x = b.select(b.fcmp_ordered("<", x, self.real(low)), self.real(low), x)
        x = b.select(b.fcmp_ordered(">", x, self.real(high)), self.real(high), x)
        shift = 1.5 * 2.0**self.bits  # adding it leaves the nearest whole number in the last bits
        moved = self.multiply_add(x, self.real(1.0 / math.log(2.0)), self.real(shift))
        n = b.sub(b.bitcast(moved, self.whole), b.bitcast(self.real(shift), self.whole))
        whole = b.fsub(moved, self.real(shift))
        first, rest = _LOG_2[self.is_double]
        r = self.multiply_add(whole, self.real(-first), x)
        r = self.multiply_add(whole, self.real(-rest), r)
        half = b.ashr(n, self.integer(1))
        other = b.sub(n, half)
        return r, self.power_of_two(half), self.power_of_two(other), other

    def log1p(self, x: Any) -> Any:
        one = self.real(1.0)
        u = self.b.fadd(x, one)
        return self.b.select(self.b.fcmp_ordered("==", u, one), x, self.log(u, x))  # which may be too small to halve

    def log(self, x: Any, less: Any = None) -> Any:
        """n log(2) + log(1 + f) with 1 + f = x / 2**n near 1, and log(1 + f) = 2 artanh(s) with s = f / (f + 2).

        Where `less` is given, x is 1 + less as rounded, and `less` is f where n is 0.
        """
        b, bits, up = self.b, self.integer(self.bits), self.bits + 2
        small = b.fcmp_ordered("<", x, self.real(2.0**self.least))
        y = b.select(small, b.fmul(x, self.real(2.0**up)), x)
        low = b.bitcast(self.real(math.sqrt(0.5)), self.whole)
        n = b.ashr(b.sub(b.bitcast(y, self.whole), low), bits)
        m = b.bitcast(b.sub(b.bitcast(y, self.whole), b.shl(n, bits)), self.kind)
        f = b.fsub(m, self.real(1.0))
        if less is not None:
            f = b.select(b.icmp_signed("==", n, self.integer(0)), less, f)
        n = b.sub(n, b.select(small, self.integer(up), self.integer(0)))
        whole = b.sitofp(n, self.kind)
        s = b.fdiv(f, b.fadd(f, self.real(2.0)))
        z = b.fmul(s, s)
        series = self.polynomial(z, [2.0 / (2 * k + 1) for k in range(1, 12 if self.is_double else 6)])
        first, rest = _LOG_2[self.is_double]
        tail = self.multiply_add(whole, self.real(rest), b.fmul(b.fmul(s, z), series))
        value = self.multiply_add(whole, self.real(first), b.fadd(b.fadd(s, s), tail))
        value = b.select(b.fcmp_ordered("==", x, self.real(math.inf)), x, value)
        value = b.select(b.fcmp_ordered("==", x, self.real(0.0)), self.real(-math.inf), value)
        return b.select(b.fcmp_unordered("<", x, self.real(0.0)), self.real(math.nan), value)

    def tanh(self, x: Any) -> Any:
        """-t / (t + 2) with t = exp(-2 |x|) - 1, and the sign of x."""
        b = self.b
        t = self.expm1(b.fmul(self.intrinsic("fabs", x), self.real(-2.0)))
        value = b.fdiv(b.fneg(t), b.fadd(t, self.real(2.0)))
        return self.intrinsic("copysign", value, x)

    def sin(self, x: Any, more: int = 0) -> Any:
        """Of x and `more` quarter turns: what is left of x to the nearest quarter turn gives its sine or cosine."""
        b = self.b
        r, n = quarter_turns(self, x)
        n = b.add(n, self.integer(more))
        z = b.fmul(r, r)
        terms = range(1, 10 if self.is_double else 6)
        sine = self.polynomial(z, [(-1.0) ** k / math.factorial(2 * k + 1) for k in terms])
        sine = self.multiply_add(b.fmul(r, z), sine, r)
        cosine = self.polynomial(z, [1.0, *((-1.0) ** k / math.factorial(2 * k) for k in terms)])
        is_even = b.icmp_signed("==", b.and_(n, self.integer(1)), self.integer(0))
        value = b.bitcast(b.select(is_even, sine, cosine), self.whole)
        sign = b.shl(b.and_(n, self.integer(2)), self.integer(62 if self.is_double else 30))
        value = b.bitcast(b.xor(value, sign), self.kind)
        return value if more else b.select(b.fcmp_ordered("==", x, self.real(0.0)), x, value)  # -0 stays -0

    def cos(self, x: Any) -> Any:
        return self.sin(x, 1)


_LOG_2 = {False: (0.693359375, math.log(2.0) - 0.693359375), True: (0.693145751953125, 1.42860682030941723212e-6)}
"""log(2) as a number of few bits, whose products with whole numbers are exact, and the rest."""
