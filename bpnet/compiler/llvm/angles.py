"""Angles as quarter turns and what is left of them, for sine and cosine of numbers of any size.

Up to FAST, x - n pi/2 is computed with pi/2 in three parts (W. J. Cody and W. Waite 1980), each product and difference
rounded once; beyond, where x has no digits left for that, from the bits of 2/pi that matter to it (M. H. Payne and R.
N. Hanek 1983), one lane after the other, since networks have such angles in sums that went wrong, if at all.
"""

import math
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from bpnet.compiler.llvm.builder import I1, I64, Function, suffix

if TYPE_CHECKING:
    from bpnet.compiler.llvm.arithmetic import Arithmetic

I128, DOUBLE = ir.IntType(128), ir.DoubleType()
FAST = {False: 2.0**17, True: 2.0**30}
"""Largest angle, in float32 and in float64, of which the number of quarter turns is sure."""
HALF_PI = {
    False: (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    True: (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
}
"""pi/2 in parts, each as exact as the type."""
TWO_OVER_PI = (
    0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561B7246E3A424DD2E006492EEA09D1921CFE1DEB1CB129A73E
    << 768
    | 0xE88235F52EBB4484E99C7026B45F7E413991D639835339F49C845F8BBDF9283B1FF897FFDE05980FEF2F118B5A0A6D1F6D367ECF27CB09B7
    << 320
    | 0x4F463F669E5FEA2D7527BAC7EBE5F17B3D0739F78A5292EA6BFB5FB11F8D5D0856033046FC7B6BAB
)
"""2/pi times 2**1216, rounded down: as many bits as the largest float64 has use for."""
WORDS = [0, *((TWO_OVER_PI >> shift) & (2**64 - 1) for shift in range(1216 - 64, -1, -64))]
HALF_PI_63 = 0xC90FDAA22168C235
"""pi/2 times 2**63."""


def quarter_turns(a: "Arithmetic", x: Any) -> tuple[Any, Any]:
    """(r, n) with x = n pi/2 + r and |r| <= pi/4, or little more; n modulo 4, as whole numbers of the size of x's."""
    b, double = a.b, a.is_double
    shift = 1.5 * 2.0**a.bits  # adding it leaves the nearest whole number in the last bits
    moved = a.multiply_add(x, a.real(2.0 / math.pi), a.real(shift))
    n = b.sub(b.bitcast(moved, a.whole), b.bitcast(a.real(shift), a.whole))
    whole, r = b.fsub(moved, a.real(shift)), x
    for part in HALF_PI[double]:
        r = a.intrinsic("fma", whole, a.real(-part), r)
    size = a.intrinsic("fabs", x)
    far = b.and_(b.fcmp_ordered(">", size, a.real(FAST[double])), b.fcmp_ordered("<", size, a.real(math.inf)))
    with b.goto_entry_block():
        r_at, n_at = b.alloca(a.kind), b.alloca(a.whole)
    b.store(r, r_at)
    b.store(n, n_at)
    some = b.intrinsic(f"vector.reduce.or.{suffix(far.type)}", I1, [far]) if a.lanes > 1 else far
    with b.if_then(some, likely=False):
        angles = b.select(far, x, a.real(2.0 * FAST[double]))
        with b.loop(0, a.lanes, carry=[r, n]) as lane:
            rest, count = _of_a_far_angle(b, b.fpext(b.lane(angles, lane.index), DOUBLE))
            found = b.fptrunc(rest, a.one), b.trunc(count, a.one_whole)
            lane.next = [b.with_lane(*into, lane.index) for into in zip(lane.values, found, strict=True)]
        for value, known, place in zip(lane.values, (r, n), (r_at, n_at), strict=True):
            b.store(b.select(far, value, known), place)
    return b.load(r_at), b.load(n_at)


def _of_a_far_angle(b: Function, x: Any) -> tuple[Any, Any]:
    """(r, n) of one angle of 1 or more, in float64.

    x = m 2**e with whole m < 2**53.  Of 2/pi those bits that times 2**e are multiples of 4 turn nothing; the 192 that
    follow them are w2 w1 w0, and the product m w2 w1 w0 has two bits of turns before its point.
    """

    def wide(value: Any) -> Any:
        return b.zext(value, I128)

    def high(value: Any) -> Any:
        return b.trunc(b.lshr(value, ir.Constant(I128, 64)), I64)

    bits = b.bitcast(x, I64)
    exponent = b.and_(b.lshr(bits, 52), 0x7FF)
    m = b.or_(b.and_(bits, 2**52 - 1), b.number(2**52))
    first = b.add(exponent, 63 - 1 - 1075)  # of the bits, before which there are 64 that are 0
    words = _table(b)
    at, within = b.lshr(first, 6), b.and_(first, 63)
    read = [b.load(b.gep(words, [b.number(0), b.add(at, i)])) for i in range(4)]
    w2, w1, w0 = (b.intrinsic("fshl.i64", I64, [read[i], read[i + 1], within]) for i in range(3))
    middle = b.add(b.mul(wide(m), wide(w1)), wide(high(b.mul(wide(m), wide(w0)))))
    top = b.add(b.mul(m, w2), high(middle))
    fraction = b.or_(b.shl(wide(top), ir.Constant(I128, 66)), b.shl(wide(b.trunc(middle, I64)), ir.Constant(I128, 2)))
    more = b.icmp_signed("<", fraction, ir.Constant(I128, 0))  # than a half: of the next turn, as much less
    turns = b.add(b.lshr(top, 62), b.zext(more, I64))
    size = b.select(more, b.sub(ir.Constant(I128, 0), fraction), fraction)
    zeros = b.intrinsic("ctlz.i128", I128, [size, ir.Constant(I1, 0)])
    digits = high(b.shl(size, zeros))
    product = high(b.mul(wide(digits), ir.Constant(I128, HALF_PI_63)))
    scale = b.bitcast(b.shl(b.sub(b.number(1023 - 63), b.trunc(zeros, I64)), b.number(52)), DOUBLE)
    rest = b.fmul(b.uitofp(product, DOUBLE), scale)
    negative = b.icmp_signed("<", bits, 0)
    rest = b.select(b.xor(more, negative), b.fneg(rest), rest)
    return rest, b.select(negative, b.sub(b.number(0), turns), turns)


def _table(b: Function) -> Any:
    """WORDS as memory of the module that is written."""
    name = "two_over_pi"
    if name not in b.module.globals:
        table = ir.GlobalVariable(b.module, ir.ArrayType(I64, len(WORDS)), name)
        table.linkage, table.global_constant = "internal", True
        table.initializer = ir.Constant(table.value_type, WORDS)
    return b.module.globals[name]
