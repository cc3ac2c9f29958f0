"""Fused kernels as CUDA C++, and how many threads run them; whoever has a device compiles and launches the text.

Three forms of loop serve all kernels:

map       no sums, or sums of everything: each thread takes entries anywhere, WIDTH at a time
columns   column-wise sums: a thread goes down the columns of one vector
rows      row-wise reductions: a group of threads goes along a row, once more than there are reductions to wait for

Sums of a block's threads are put into scratch memory, and the block that is the last to do so adds them up, in an order
that depends on the shape alone.  With OPTIONS nothing is contracted, so an operation that IEEE 754 rounds exactly gives
the bits that it gives alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bpnet.compiler.commands import FusedKernel, Reference, result_dtype
from bpnet.compiler.cuda.device import COMMON, REDUCTIONS
from bpnet.compiler.cuda.launch import STORED, THREADS, TYPES, form_of
from bpnet.compiler.ops import OPERATIONS, ROW_REDUCTIONS

OPTIONS = ("--std=c++17", "--fmad=false")
"""For NVIDIA's compiler."""
PREFETCHED = 4
"""Rows that a thread which sums reads before it computes with any of them, so that memory is never waited for idly."""


@dataclass(frozen=True)
class Variant:
    """What the text depends on besides the kernel.

    width: elements that a thread takes at a time; all full operands and results must then begin at multiples of 16
    bytes, and rows be multiples of it unless there is one.
    indirect: which results are written where an address in memory says.
    keys: for every mask, which parts of its key are hyperparameters.
    spread: whether rows are longer than a block has registers for their column-wise sums.
    disjoint: whether nothing is written where an operand lies.
    """

    width: int
    indirect: frozenset[int] = frozenset()
    keys: tuple[tuple[bool, ...], ...] = ()
    spread: bool = False
    disjoint: bool = False


@lru_cache(maxsize=1024)
def source(kernel: FusedKernel, variant: Variant) -> str:
    """The text of `kernel`, whose parameters are, in this order:

    long long rows, columns; every operand; every result; T* scratch; unsigned int* tickets, zero before and after;
    const double* numbers; int of each number that is read; T of each constant; of each mask: unsigned int threshold,
    T scale, and its key's parts, an int for a hyperparameter, else an unsigned int.
    """
    return _Writer(kernel, variant).text()


# ---- the text --------------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, kernel: FusedKernel, variant: Variant) -> None:
        self.kernel, self.variant, self.form = kernel, variant, form_of(kernel)
        self.stored = [result_dtype(kernel, result) for result in kernel.results]
        self.once: dict[Reference, str] = {}
        """Values that are the same for the whole kernel, by their names."""
        self.of_row: dict[Reference, str] = {}
        """The same for the row that is worked on."""
        self.column_sums = [i for i, (kind, *_) in enumerate(kernel.results) if kind == "column_sum"]
        self.full = [i for i, (kind, *_) in enumerate(kernel.results) if kind.startswith("full_")]
        self.phases = 1 + max([0, *(phase for _, _, phase, _ in kernel.results)])

    def text(self) -> str:
        body = {"map": self.map, "columns": self.columns, "rows": self.rows}[self.form]()
        lines = [*self.prologue(), *body, *self.epilogue()]
        head = COMMON + REDUCTIONS if self.form == "rows" or self.column_sums or self.full else COMMON
        head = head.replace("<<real>>", TYPES[self.kernel.dtype]).replace("<<threads>>", str(THREADS))
        parameters = ",\n    ".join(self.parameters())
        return f'{head}\nextern "C" __global__ void __launch_bounds__({THREADS}) fused(\n    {parameters}\n) {{\n' + (
            "".join(f"    {line}\n" for line in lines) + "}\n"
        )

    def parameters(self) -> Iterator[str]:
        kernel, variant = self.kernel, self.variant
        yield "const long long rows, const long long columns"
        restrict = " __restrict__" if variant.disjoint else ""
        for i, (_, dtype) in enumerate(kernel.operands):
            yield f"const {STORED[dtype]}*{restrict} p{i}"
        for i, dtype in enumerate(self.stored):
            yield f"{STORED[dtype]}* const* a{i}" if i in variant.indirect else f"{STORED[dtype]}*{restrict} q{i}"
        yield "T* scratch, unsigned int* tickets, const double* numbers"
        yield from (f"const int s{i}" for i in range(kernel.numbers))
        yield from (f"const T c{i}" for i in range(kernel.constants))
        for m, key in enumerate(variant.keys):
            yield f"const unsigned int limit{m}, const T scale{m}"
            yield from (f"const {'int' if number else 'unsigned int'} k{m}_{i}" for i, number in enumerate(key))

    def prologue(self) -> Iterator[str]:
        """What is done once: numbers, keys of masks, scalar operands and values, and totals that begin."""
        kernel, variant = self.kernel, self.variant
        for i in sorted(variant.indirect):
            yield f"{STORED[self.stored[i]]}* const q{i} = *a{i};"
        for i in range(kernel.numbers):
            yield f"const T n{i} = (T)numbers[s{i}];"
        for m, key in enumerate(variant.keys):
            yield f"unsigned int key{m} = 0;"
            for i, number in enumerate(key):
                part = f"(unsigned int)(long long)numbers[k{m}_{i}]" if number else f"k{m}_{i}"
                yield f"key{m} = mixed((key{m} ^ {part}) + 0x9E3779B9u);"
        for i, (layout, _) in enumerate(kernel.operands):
            if layout == "scalar":
                self.once["operand", i] = f"x{i}"
                yield f"const T x{i} = get(p{i}[0]);"
        for i, (op, layout, phase, *args) in enumerate(kernel.expressions):
            if layout == "scalar" and phase == 0 and op not in ROW_REDUCTIONS:
                yield f"const auto v{i} = {self.spelled(op, args, {})};"
                self.once["value", i] = f"v{i}"
        for i in self.full:
            yield f"T t{i} = {_NOTHING[kernel.results[i][0][5:]]}, e{i} = 0;"

    # ---- expressions --------------------------------------------------------------------------------------------

    def name(self, reference: Reference, known: dict[Reference, str]) -> str:
        kind, which = reference
        if kind == "literal":
            return f"(T){which!r}"
        if kind in ("number", "constant"):
            return f"{kind[0]}{which}"
        return known.get(reference) or self.of_row.get(reference) or self.once[reference]

    def spelled(self, op: str, args: Sequence[Any], known: dict[Reference, str]) -> str:
        return OPERATIONS[op].cuda.format(*(self.name(a, known) for a in args))

    def lane(self, wanted: Sequence[Reference], known: dict[Reference, str]) -> Iterator[str]:
        """What computes values of lane k of the entries at (row, col), and names them in `known`."""
        for i in self.needed(wanted, known):
            op, _, _, *args = self.kernel.expressions[i]
            if op == "mask":
                m = sum(other == "mask" for other, *_ in self.kernel.expressions[:i])
                text = f"mixed((unsigned int)(at + k) * 0x9E3779B9u + key{m}) < limit{m} ? scale{m} : (T)0"
            elif op == "positions":
                text = "(T)(col + k)"
            else:
                text = self.spelled(op, args, known)
            known["value", i] = f"v{i}"
            yield f"const auto v{i} = {text};"

    def needed(self, wanted: Sequence[Reference], known: dict[Reference, str]) -> list[int]:
        """The expressions that these values are made of and that are not known, in their order."""
        found: set[int] = set()
        todo = list(wanted)
        while todo:
            reference = todo.pop()
            if reference[0] != "value" or reference[1] in found:
                continue
            if reference in known or reference in self.of_row or reference in self.once:
                continue
            found.add(reference[1])
            op, _, _, *args = self.kernel.expressions[reference[1]]
            todo += [] if op == "mask" else args
        return sorted(found)

    def read(self, wanted: Sequence[Reference]) -> list[int]:
        """The operands of which these values read an entry, or one of the row or column."""
        references = list(wanted)
        for i in self.needed(wanted, {}):
            op, _, _, *args = self.kernel.expressions[i]
            references += [] if op == "mask" else args
        found = {w for kind, w in references if kind == "operand" and ("operand", w) not in self.once}
        return sorted(w for w in found if ("operand", w) not in self.of_row)

    def load(self, i: int, width: int, at: str = "at", row: str = "row") -> str:
        layout = self.kernel.operands[i][0]
        if layout == "per_row":
            return f"get(p{i}[{row}])"
        return f"load<{width}>(p{i}, {at})" if layout == "full" else f"each<{width}>(p{i}, col)"

    def kind(self, i: int, width: int) -> str:
        layout, dtype = self.kernel.operands[i]
        return "T" if layout == "per_row" else f"Words<{width}, {STORED[dtype]}>"

    def entry(self, i: int, name: str) -> str:
        return name if self.kernel.operands[i][0] == "per_row" else f"get({name}.v[k])"

    def entries(
        self, sinks: Sequence[int], reduced: dict[int, Reference], width: int, loaded: dict[int, str]
    ) -> Iterator[str]:
        """What is done with `width` entries whose operands are `loaded`: all is computed before anything is written."""
        results = self.kernel.results
        stored = [i for i in sinks if results[i][0].startswith("store")]
        known: dict[Reference, str] = {("operand", i): self.entry(i, name) for i, name in loaded.items()}
        yield from (f"Words<{width}> y{i};" for i in stored)
        yield f"for (int k = 0; k < {width}; ++k) {{"
        yield from _in(self.lane([*(results[i][1] for i in sinks), *reduced.values()], known))
        for i in sinks:
            kind, reference, *_ = results[i]
            name = self.name(reference, known)
            if kind.startswith("store"):
                yield f"    y{i}.v[k] = {name};"
            elif kind == "column_sum" and self.variant.spread:
                place = f"scratch[({self.column_sums.index(i)} * gridDim.x + blockIdx.x) * columns + col + k]"
                yield f"    {place} = row == blockIdx.x ? {name} : {place} + {name};"
            else:
                lane = "[k]" if kind == "column_sum" else ""
                yield f"    {_JOIN[kind.partition('_')[2]].format(f't{i}{lane}', f'e{i}{lane}', name)};"
        for i, reference in reduced.items():
            op = self.kernel.expressions[i][0].removeprefix("row_")
            yield f"    {_JOIN[op].format(f'r{i}', f'f{i}', self.name(reference, known))};"
        yield "}"
        yield from (f"store<{width}>(q{i}, at, y{i});" for i in stored)

    def some(self, sinks: Sequence[int], reduced: dict[int, Reference], width: int) -> Iterator[str]:
        """The same where the operands are loaded here."""
        wanted = [*(self.kernel.results[i][1] for i in sinks), *reduced.values()]
        loaded = {i: f"x{i}" for i in self.read(wanted)}
        yield from (f"const {self.kind(i, width)} x{i} = {self.load(i, width)};" for i in loaded)
        yield from self.entries(sinks, reduced, width, loaded)

    def across(
        self, start: str, stop: str, step: str, sinks: Sequence[int], reduced: dict[int, Reference]
    ) -> Iterator[str]:
        """A loop along a row: vectors of `width` elements, and then what is left, one by one.

        Were both in one loop, NVIDIA's compiler would take vectors apart to store them.
        """
        width = self.variant.width
        yield f"for (long long col = {start} * {width}; col + {width} <= {stop}; col += {step} * {width}) {{"
        yield "    const long long at = row * columns + col;"
        yield from _in(self.some(sinks, reduced, width))
        yield "}"
        if width > 1:
            yield f"for (long long col = {stop} - {stop} % {width} + {start}; col < {stop}; col += {step}) {{"
            yield "    const long long at = row * columns + col;"
            yield from _in(self.some(sinks, reduced, 1))
            yield "}"

    # ---- the three loops ----------------------------------------------------------------------------------------

    def map(self) -> Iterator[str]:
        yield "for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;"
        yield "     row += (long long)gridDim.y * blockDim.y) {"
        start, step = "((long long)blockIdx.x * blockDim.x + threadIdx.x)", "(long long)gridDim.x * blockDim.x"
        yield from _in(self.across(start, "columns", step, range(len(self.kernel.results)), {}))
        yield "}"

    def columns(self) -> Iterator[str]:
        width, results = self.variant.width, self.kernel.results
        every = range(len(results))
        loaded = {i: f"x{i}" for i in self.read([results[i][1] for i in every])}
        yield from (f"T t{i}[{width}] = {{}}, e{i}[{width}] = {{}};" for i in self.column_sums)
        yield f"const long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * {width};"
        yield "const long long step = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * step;"
        yield "const long long end = col >= columns ? 0 : begin + step < rows ? begin + step : rows;"
        below = [i for i in loaded if self.kernel.operands[i][0] != "per_column"]
        yield from (f"{self.kind(i, width)} x{i} = {{}};" for i in loaded if i not in below)
        yield "if (col < columns) {"
        yield from (f"    x{i} = {self.load(i, width)};" for i in loaded if i not in below)
        yield "}"
        yield f"for (long long top = begin + threadIdx.y; top < end; top += {PREFETCHED} * blockDim.y) {{"
        yield from (f"    {self.kind(i, width)} w{i}[{PREFETCHED}];" for i in below)
        yield "#pragma unroll"
        yield f"    for (int ahead = 0; ahead < {PREFETCHED}; ++ahead) {{"
        yield "        const long long row = top + ahead * blockDim.y;"
        yield "        if (row < end) {"
        yield from (f"            w{i}[ahead] = {self.load(i, width, at='row * columns + col')};" for i in below)
        yield "        }"
        yield "    }"
        yield "#pragma unroll"
        yield f"    for (int ahead = 0; ahead < {PREFETCHED}; ++ahead) {{"
        yield "        const long long row = top + ahead * blockDim.y, at = row * columns + col;"
        yield "        if (row < end) {"
        names = {i: f"w{i}[ahead]" if i in below else name for i, name in loaded.items()}
        yield from _in(self.entries(every, {}, width, names), 3)
        yield "        }"
        yield "    }"
        yield "}"

    def rows(self) -> Iterator[str]:
        width, kernel = self.variant.width, self.kernel
        if not self.variant.spread:
            yield from (f"T t{i}[{width}] = {{}}, e{i}[{width}] = {{}};" for i in self.column_sums)
        yield "__shared__ T group[<<threads>>];".replace("<<threads>>", str(THREADS))
        yield "for (long long first = (long long)blockIdx.x * blockDim.y; first < rows;"
        yield "     first += (long long)gridDim.x * blockDim.y) {"
        yield "    const long long row = first + threadIdx.y;"
        yield "    const bool there = row < rows;  // a row that is not there has no entries"
        yield "    const long long stop = there ? columns : 0;"
        for i, (layout, _) in enumerate(kernel.operands):
            if layout == "per_row":
                yield f"    const T x{i} = there ? get(p{i}[row]) : (T)0;"
                self.of_row["operand", i] = f"x{i}"
        for phase in range(self.phases):
            yield from _in(self.phase(phase))
        yield "}"

    def phase(self, phase: int) -> Iterator[str]:
        kernel = self.kernel
        along = [i for i, (_, _, p, of) in enumerate(kernel.results) if p == phase and of in ("full", "per_column")]
        single = [i for i, (_, _, p, _) in enumerate(kernel.results) if p == phase and i not in along]
        reduced = {i: e[3] for i, e in enumerate(kernel.expressions) if e[0] in ROW_REDUCTIONS and e[2] == phase}
        for i, (op, layout, p, *args) in enumerate(kernel.expressions):
            known = ("value", i) in self.once or ("value", i) in self.of_row
            if layout in ("per_row", "scalar") and p == phase and op not in ROW_REDUCTIONS and not known:
                yield f"const auto v{i} = {self.spelled(op, args, {})};"
                self.of_row["value", i] = f"v{i}"
        for i in reduced:
            yield f"T r{i} = {_NOTHING[kernel.expressions[i][0][4:]]}, f{i} = 0;"
        if along or reduced:
            yield from self.across("(long long)threadIdx.x", "stop", "blockDim.x", along, reduced)
        for i in reduced:
            op = kernel.expressions[i][0][4:]
            yield f"const T v{i} = along_row(rounded(r{i}, f{i}), {_CODE[op]}, group);"
            self.of_row["value", i] = f"v{i}"
        if single:
            yield "if (there && threadIdx.x == 0) {"
            for i in single:
                kind, reference, _, layout = kernel.results[i]
                name = self.name(reference, {})
                if kind.startswith("store"):
                    yield f"    put(q{i}[{'row' if layout == 'per_row' else '0'}], {name});"
                else:
                    yield f"    {_JOIN[kind[5:]].format(f't{i}', f'e{i}', name)};"
            yield "}"

    # ---- sums of blocks -----------------------------------------------------------------------------------------

    def epilogue(self) -> Iterator[str]:
        """Partial results of the threads of a block, and then of all blocks, by the last of them."""
        sums = [] if self.variant.spread else self.column_sums
        if not (sums or self.full):
            return
        width, blocks = self.variant.width, "gridDim.y" if self.form == "columns" else "gridDim.x"
        yield "__shared__ T part[<<threads>>];".replace("<<threads>>", str(THREADS))
        yield "const int me = threadIdx.y * blockDim.x + threadIdx.x;"
        across = "blockIdx.x * blockDim.x + threadIdx.x" if self.form == "columns" else "threadIdx.x"
        number = "blockIdx.y" if self.form == "columns" else "blockIdx.x"
        if sums:
            yield f"const long long mine = ((long long){across}) * {width};"
        for n, i in enumerate(sums):
            yield f"for (int k = 0; k < {width}; ++k) {{"
            yield f"    const T sum = over_rows(rounded(t{i}[k], e{i}[k]), part);"
            yield "    if (threadIdx.y == 0 && mine < columns) {"
            yield f"        scratch[({n}ll * {blocks} + {number}) * columns + mine + k] = sum;"
            yield "    }"
            yield "}"
        every = "(long long)gridDim.x * gridDim.y"
        start = f"{len(self.column_sums)}ll * {blocks} * columns"
        for n, i in enumerate(self.full):
            code = _CODE[self.kernel.results[i][0][5:]]
            yield f"const T all{i} = over_block(rounded(t{i}, e{i}), {code}, part);"
            yield f"if (me == 0) scratch[{start} + {n} * {every} + blockIdx.y * gridDim.x + blockIdx.x] = all{i};"
        if sums:
            ticket, others = ("tickets + 1 + blockIdx.x", "gridDim.y") if self.form == "columns" else (
                "tickets + 1", "gridDim.x")  # fmt: skip
            yield f"if (is_last({ticket}, {others})) {{"
            yield f"    for (int k = 0; k < {width}; ++k) {{"
            for n, i in enumerate(sums):
                yield "        {"
                yield "            T total = 0, rest = 0;"
                yield "            if (mine < columns) {"
                yield f"                const volatile T* from = scratch + {n}ll * {blocks} * columns + mine + k;"
                yield "#pragma unroll 4"
                yield f"                for (long long i = threadIdx.y; i < {blocks}; i += blockDim.y) {{"
                yield "                    add(total, rest, from[i * columns]);"
                yield "                }"
                yield "            }"
                yield "            const T sum = over_rows(rounded(total, rest), part);"
                yield f"            if (threadIdx.y == 0 && mine < columns) put(q{i}[mine + k], sum);"
                yield "        }"
            yield "    }"
            yield "}"
        if self.full:
            yield f"if (is_last(tickets, {every})) {{"
            for n, i in enumerate(self.full):
                op = self.kernel.results[i][0][5:]
                yield "    {"
                yield f"        const volatile T* from = scratch + {start} + {n} * {every};"
                yield f"        T total = {_NOTHING[op]}, rest = 0;"
                yield f"        for (long long i = me; i < {every}; i += {THREADS}) {{"
                yield "            const T value = from[i];"
                yield f"            {_JOIN[op].format('total', 'rest', 'value')};"
                yield "        }"
                yield f"        const T all = over_block(rounded(total, rest), {_CODE[op]}, part);"
                yield f"        if (me == 0) put(q{i}[0], all);"
                yield "    }"
            yield "}"


def _in(lines: Iterator[str], depth: int = 1) -> Iterator[str]:
    yield from (line if line.startswith("#") else "    " * depth + line for line in lines)


_NOTHING = {"sum": "0", "max": "-INFINITY", "min": "INFINITY"}
_CODE = {"sum": "0", "max": "1", "min": "2"}
_JOIN = {
    "sum": "add({0}, {1}, {2})",
    "max": "{0} = joined({0}, {2}, 1)",
    "min": "{0} = joined({0}, {2}, 2)",
}
