"""Fused kernels as CUDA C++, and how many threads run them; whoever has a device compiles and launches the text.

Three forms of loop serve all kernels:

map       no sums, or sums of everything: each thread takes entries anywhere, WIDTH at a time
columns   column-wise sums: a thread goes down the columns of one vector, again where it has to know them first
rows      row-wise reductions: a group of threads goes along a row, once more than there are reductions to wait for

Sums of a block's threads are put into scratch memory, and the block that is the last to do so adds them up, in an order
that depends on the shape alone.  With OPTIONS nothing is contracted, and subnormal numbers are not taken for 0, so an
operation that IEEE 754 rounds exactly gives the bits that it gives alone, and on a CPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bpnet.compiler.commands import FusedKernel, KernelResult, Reference, result_dtype
from bpnet.compiler.cuda.device import COMMON, REDUCTIONS
from bpnet.compiler.cuda.launch import STORED, THREADS, TYPES, form_of
from bpnet.compiler.ops import BY_COLUMN, COMPARISONS, GENERATORS, OPERATIONS, RANDOM, ROW_REDUCTIONS

OPTIONS = ("--std=c++17", "--fmad=false")
"""For NVIDIA's compiler, which by itself rounds divisions and roots as IEEE 754 has it and keeps subnormal numbers;
what could be saved there is arithmetic, and kernels wait for memory."""
_FUSED = f'extern "C" __global__ void __launch_bounds__({THREADS}) fused'
PREFETCHED = 4
"""Rows that a thread which sums reads before it computes with any of them, so that memory is never waited for idly."""


@dataclass(frozen=True)
class Variant:
    """What the text depends on besides the kernel.

    width: elements that a thread takes at a time; all full operands and results must then begin at multiples of 16
    bytes, but for `unaligned` operands, and rows be multiples of it unless there is one.  So must windows, and how far
    their rows are apart.
    indirect: which results are written where an address in memory says.
    masks: for every mask, which of its parts are hyperparameters.
    spread: whether rows are longer than a block has registers for their column-wise sums.
    disjoint: whether nothing is written where an operand lies.
    unaligned: operands that begin elsewhere, and are read one by one; sums are then the same as of aligned ones.
    """

    width: int
    indirect: frozenset[int] = frozenset()
    masks: tuple[tuple[bool, ...], ...] = ()
    spread: bool = False
    disjoint: bool = False
    unaligned: frozenset[int] = frozenset()


@lru_cache(maxsize=1024)
def source(kernel: FusedKernel, variant: Variant) -> str:
    """The text of `kernel`, whose parameters are, in this order:

    long long rows, columns; every operand; every result; of each window, operands before results, how many elements its
    rows are apart; T* scratch; unsigned int* tickets, zero before and after;
    const double* numbers; int of each number that is read; T of each constant; of each mask: unsigned int threshold,
    T scale, and its key's parts, an int for a hyperparameter, else an unsigned int.
    """
    return _Writer(kernel, variant).text()


@lru_cache(maxsize=256)
def source_together(kernels: tuple[FusedKernel, ...], variants: tuple[Variant, ...]) -> str:
    """The text of kernels over one row each as one, whose parameters are for each of them the number of its blocks, and
    then those that `source` says: so many blocks do the first, so many the second ..."""
    pairs = enumerate(zip(kernels, variants, strict=True))
    writers = [_Writer(kernel, variant, f"part{i}") for i, (kernel, variant) in pairs]
    functions, parameters, calls = [], [], []
    for i, writer in enumerate(writers):
        functions.append(writer.tables() + writer.function(f"__device__ __forceinline__ void {writer.part}"))
        own = [text.rpartition(" ") for text in ", ".join(writer.parameters()).split(", ")]
        parameters += [f"const long long n{i}", *(f"{kind} {name}_{i}" for kind, _, name in own)]
        given = ", ".join(["block", f"n{i}", *(f"{name}_{i}" for *_, name in own)])
        calls += [f"if (block < n{i}) return part{i}({given});", f"block -= n{i};"]
    body = "".join(f"    {line}\n" for line in ("long long block = blockIdx.x;", *calls[:-1]))
    given = ",\n    ".join(parameters)
    head = _FUSED.replace(f"({THREADS})", f"({THREADS}, 2)")  # or else registers are spared where memory then serves
    return f"{writers[0].head()}\n{''.join(functions)}{head}(\n    {given}\n) {{\n{body}}}\n"


# ---- the text --------------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, kernel: FusedKernel, variant: Variant, part: str = "") -> None:
        """`part`: its name where only some blocks do it, which is told its number among them, and how many they are."""
        self.part = part
        self.kernel, self.variant, self.form = kernel, variant, form_of(kernel)
        self.stored = [result_dtype(kernel, result) for result in kernel.results]
        self.known: dict[Reference, str] = {("number", i): f"n{i}" for i in range(kernel.numbers)}
        self.known |= {("constant", i): f"c{i}" for i in range(kernel.constants)}
        """Names of values that are the same for the whole kernel, and of those of the row that is worked on."""
        self.apart = {i: f"d{i}" for i, (layout, _) in enumerate(kernel.operands) if layout == "window"}
        self.result_apart = {i: f"u{i}" for i, (*_, layout) in enumerate(kernel.results) if layout == "window"}
        self.column_sums = [i for i, (kind, *_) in enumerate(kernel.results) if kind == "column_sum"]
        self.full = [i for i, (kind, *_) in enumerate(kernel.results) if kind.startswith("full_")]

    def text(self) -> str:
        return f"{self.head()}\n{self.tables()}{self.function(_FUSED)}"

    def tables(self) -> str:
        """The numbers that it knows of each column."""
        known = [(i, values) for i, (op, _, _, *values) in enumerate(self.kernel.expressions) if op == "table"]
        lines = (f"{self.part}table{i}[] = {{{', '.join(f'(T){v!r}' for v in values)}}};\n" for i, values in known)
        return "".join(f"static __device__ const T {line}" for line in lines)

    def head(self) -> str:
        """The functions that it calls."""
        head = COMMON + REDUCTIONS if self.form != "map" or self.full else COMMON
        return head.replace("<<real>>", TYPES[self.kernel.dtype]).replace("<<threads>>", str(THREADS))

    def function(self, head: str) -> str:
        """The kernel, or what does a part of one."""
        body = {"map": self.map, "columns": self.columns, "rows": self.rows}[self.form]()
        lines = [*self.prologue(), *body, *self.epilogue()]
        first = ["const long long block, const long long blocks"] if self.part else []
        parameters = ",\n    ".join([*first, *self.parameters()])
        return f"{head}(\n    {parameters}\n) {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"

    def parameters(self) -> Iterator[str]:
        kernel, variant = self.kernel, self.variant
        yield "const long long rows, const long long columns"
        restrict = " __restrict__" if variant.disjoint else ""
        for i, (_, dtype) in enumerate(kernel.operands):
            yield f"const {STORED[dtype]}*{restrict} p{i}"
        for i, dtype in enumerate(self.stored):
            yield f"{STORED[dtype]}* const* a{i}" if i in variant.indirect else f"{STORED[dtype]}*{restrict} q{i}"
        yield from (f"const long long {name}" for name in [*self.apart.values(), *self.result_apart.values()])
        yield "T* scratch, unsigned int* tickets, const double* numbers"
        yield from (f"const int s{i}" for i in range(kernel.numbers))
        yield from (f"const T c{i}" for i in range(kernel.constants))
        for m, parts in enumerate(variant.masks):
            yield f"const unsigned int limit{m}, const T scale{m}"
            yield from (f"const {'int' if number else 'unsigned int'} k{m}_{i}" for i, number in enumerate(parts))

    def prologue(self) -> Iterator[str]:
        """What is done once: numbers, keys of masks, scalar operands and values, and totals that begin."""
        kernel, variant = self.kernel, self.variant
        yield from (f"{STORED[self.stored[i]]}* const q{i} = *a{i};" for i in sorted(variant.indirect))
        yield from (f"const T n{i} = (T)numbers[s{i}];" for i in range(kernel.numbers))
        for m, parts in enumerate(variant.masks):
            names = (f"(unsigned int)(long long)numbers[k{m}_{i}]" if n else f"k{m}_{i}" for i, n in enumerate(parts))
            before, *key = names
            yield f"unsigned int start{m} = 0;"
            yield from (f"start{m} = mixed((start{m} ^ {part}) + 0x9E3779B9u);" for part in key)
            yield f"start{m} += {before} * 0x9E3779B9u;"
        for i, (layout, _) in enumerate(kernel.operands):
            if layout == "scalar":
                self.known["operand", i] = f"x{i}"
                yield f"const T x{i} = get(p{i}[0]);"
        yield from self.the_same(("scalar",), 0)
        yield from (f"T t{i}[1] = {{nothing({_op(kernel.results[i][0])})}}, e{i}[1] = {{}};" for i in self.full)

    # ---- expressions --------------------------------------------------------------------------------------------

    def name(self, reference: Reference, known: dict[Reference, str]) -> str:
        return f"(T){reference[1]!r}" if reference[0] == "literal" else known[reference]

    def spelled(self, op: str, args: Sequence[Any], known: dict[Reference, str]) -> str:
        return OPERATIONS[op].cuda.format(*(self.name(a, known) for a in args))

    def by_column(self, i: int, op: str) -> str:
        """What has a value for each column: its number, or that of a table."""
        return "(T)(col + k)" if op == "positions" else f"{self.part}table{i}[col + k]"

    def the_same(self, layouts: tuple[str, ...], phase: int) -> Iterator[str]:
        """What computes values that are the same for all entries, or for all of a row."""
        for i, (op, layout, p, *args) in enumerate(self.kernel.expressions):
            needed = layout in layouts and p == phase and ("value", i) not in self.known
            if needed and op not in ROW_REDUCTIONS:
                yield f"const auto v{i} = {self.spelled(op, args, self.known)};"
                self.known["value", i] = f"v{i}"

    def unknown(self, needed: Sequence[Reference], known: dict[Reference, str]) -> set[Reference]:
        """The operands and expressions that these values are made of and that are not known."""
        found: set[Reference] = set()
        todo = list(needed)
        while todo:
            reference = todo.pop()
            if reference[0] == "literal" or reference in known or reference in found:
                continue
            found.add(reference)
            if reference[0] == "value":
                op, _, _, *args = self.kernel.expressions[reference[1]]
                todo += [] if op in GENERATORS else args
        return found

    def read(self, needed: Sequence[Reference]) -> list[int]:
        """The operands of which these values read an entry, or one of the row or column."""
        return sorted(i for kind, i in self.unknown(needed, self.known) if kind == "operand")

    def load(self, i: int, width: int) -> str:
        layout = self.kernel.operands[i][0]
        if layout == "per_row":
            return f"get(p{i}[row])"
        load = "each" if layout == "per_column" or i in self.variant.unaligned else "load"
        at = f"row * {self.apart[i]} + col" if layout == "window" else "at" if layout == "full" else "col"
        return f"{load}<{width}>(p{i}, {at})"

    def kind(self, i: int, width: int) -> str:
        layout, dtype = self.kernel.operands[i]
        return "T" if layout == "per_row" else f"Words<{width}, {STORED[dtype]}>"

    def entries(
        self, sinks: Sequence[int], reduced: dict[int, Reference], width: int, loaded: dict[int, str] | None = None
    ) -> Iterator[str]:
        """What is done with `width` entries at (row, col), whose operands are loaded here or before, under these names.

        All is computed before anything is written.
        """
        kernel = self.kernel
        stored = [i for i in sinks if kernel.results[i][0].startswith("store")]
        needed = [*(kernel.results[i][1] for i in sinks), *reduced.values()]
        if loaded is None:
            loaded = {i: f"x{i}" for i in self.read(needed)}
            yield from (f"const {self.kind(i, width)} x{i} = {self.load(i, width)};" for i in loaded)
        yield from (f"Words<{width}> y{i};" for i in stored)
        known = self.known.copy()
        for i, name in loaded.items():
            known["operand", i] = name if kernel.operands[i][0] == "per_row" else f"get({name}.v[k])"
        done = []  # with lane k of the entries
        for i in sorted(i for kind, i in self.unknown(needed, known) if kind == "value"):
            op, _, _, *args = kernel.expressions[i]
            if op in RANDOM:
                m = sum(other in RANDOM for other, *_ in kernel.expressions[:i])
                text = f"mixed((unsigned int)(at + k) * 0x9E3779B9u + start{m})"
                mask, uniform = f"{text} < limit{m} ? scale{m} : (T)0", f"((T)({text} >> 9) + (T)0.5) * (T)0x1p-23"
                text = mask if op == "mask" else uniform
            elif op in BY_COLUMN:
                text = self.by_column(i, op)
            else:
                text = self.spelled(op, args, known)
            known["value", i] = f"v{i}"
            done.append(f"const auto v{i} = {text};")
        for i in sinks:
            kind, reference, *_ = kernel.results[i]
            name = self.name(reference, known)
            if kind.startswith("store"):
                done.append(f"y{i}.v[k] = {name};")
            elif kind == "column_sum" and self.variant.spread:
                place = f"scratch[({self.column_sums.index(i)} * gridDim.x + blockIdx.x) * columns + col + k]"
                done.append(f"{place} = row == blockIdx.x ? {name} : {place} + {name};")
            else:
                lane = "[k]" if kind == "column_sum" else "[0]"
                done.append(f"join(t{i}{lane}, e{i}{lane}, {name}, {_op(kind)});")
        for i, reference in reduced.items():
            op = kernel.expressions[i][0]
            lane = "[k]" if op == "column_sum" else ""
            done.append(f"join(r{i}{lane}, f{i}{lane}, {self.name(reference, known)}, {_op(op)});")
        yield from _block(f"for (int k = 0; k < {width}; ++k)", done)
        for i in stored:
            at = f"row * {self.result_apart[i]} + col" if i in self.result_apart else "at"
            yield f"store<{width}>(q{i}, {at}, y{i});"

    def across(
        self, start: str, stop: str, step: str, sinks: Sequence[int], reduced: dict[int, Reference]
    ) -> Iterator[str]:
        """A loop along a row: vectors of `width` elements, and then what is left, one by one.

        Were both in one loop, NVIDIA's compiler would take vectors apart to store them.
        """
        width = self.variant.width
        heads = {width: f"for (long long col = {start} * {width}; col + {width} <= {stop}; col += {step} * {width})"}
        if width > 1:
            heads[1] = f"for (long long col = {stop} - {stop} % {width} + {start}; col < {stop}; col += {step})"
        for wide, head in heads.items():
            yield from _block(head, ["const long long at = row * columns + col;", *self.entries(sinks, reduced, wide)])

    # ---- the three loops ----------------------------------------------------------------------------------------

    def map(self) -> Iterator[str]:
        block, blocks = ("block", "blocks") if self.part else ("(long long)blockIdx.x", "(long long)gridDim.x")
        start, step = f"({block} * blockDim.x + threadIdx.x)", f"{blocks} * blockDim.x"
        yield "const long long below = (long long)gridDim.y * blockDim.y;"
        rows = "row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += below"
        body = self.across(start, "columns", step, range(len(self.kernel.results)), {})
        yield from _block(f"for (long long {rows})", body)

    def columns(self) -> Iterator[str]:
        kernel, width = self.kernel, self.variant.width
        sums = {i: e for i, e in enumerate(kernel.expressions) if e[0] == "column_sum"}
        loaded = self.read([r[1] for r in kernel.results] + [e[3] for e in sums.values()])
        once = [i for i in loaded if kernel.operands[i][0] == "per_column"]
        yield from (f"T t{i}[{width}] = {{}}, e{i}[{width}] = {{}};" for i in self.column_sums)
        yield f"const long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * {width};"
        yield "const long long step = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * step;"
        yield "const long long end = col >= columns ? 0 : begin + step < rows ? begin + step : rows;"
        yield from (f"{self.kind(i, width)} x{i} = {{}};" for i in once)
        yield from _block("if (col < columns)", (f"x{i} = {self.load(i, width)};" for i in once))
        self.known |= {("operand", i): f"get(x{i}.v[k])" for i in once}
        for phase in range(1 + max(r[2] for r in kernel.results)):
            yield from self.the_same(("scalar",), phase)
            yield from self.of_columns(phase)
            entries = [i for i, r in enumerate(kernel.results) if r[2] == phase and not _per_column(r)]
            reduced = {i: e[3] for i, e in sums.items() if e[2] == phase}
            if entries or reduced:
                yield from self.down(entries, reduced)
            if reduced:
                yield from self.known_sums(list(reduced))

    def of_columns(self, phase: int) -> Iterator[str]:
        """Values that are the same for a whole column, and those of them that are stored."""
        kernel, width, lanes, done = self.kernel, self.variant.width, [], []
        for i, (op, layout, p, *args) in enumerate(kernel.expressions):
            if layout == "per_column" and p == phase and op != "column_sum":
                lanes.append(f"{'bool' if op in COMPARISONS else 'T'} v{i}[{width}];")
                known = op in BY_COLUMN  # of columns that there are: some threads have none
                text = (
                    f"col < columns ? {self.by_column(i, op)} : (T)0" if known else self.spelled(op, args, self.known)
                )
                done.append(f"v{i}[k] = {text};")
                self.known["value", i] = f"v{i}[k]"
        for i, result in enumerate(kernel.results):
            if result[2] == phase and _per_column(result):
                name = self.name(result[1], self.known)
                done.append(f"if (threadIdx.y == 0 && col < columns) put(q{i}[col + k], {name});")
        yield from lanes
        if done:
            yield from _block(f"for (int k = 0; k < {width}; ++k)", done)

    def down(self, sinks: Sequence[int], reduced: dict[int, Reference]) -> Iterator[str]:
        """A loop down the rows, several of which are read before anything is done with them."""
        width = self.variant.width
        below = self.read([*(self.kernel.results[i][1] for i in sinks), *reduced.values()])
        names = {i: f"w{i}[ahead]" for i in below}
        yield from (f"T r{i}[{width}] = {{}}, f{i}[{width}] = {{}};" for i in reduced)

        def of_each_row(lines: Iterable[str]) -> Iterator[str]:
            place = "const long long row = top + ahead * blockDim.y, at = row * columns + col;"
            yield "#pragma unroll"
            head = f"for (int ahead = 0; ahead < {PREFETCHED}; ++ahead)"
            yield from _block(head, [place, *_block("if (row < end)", lines)])

        rows = f"top = begin + threadIdx.y; top < end; top += {PREFETCHED} * blockDim.y"
        yield from _block(f"for (long long {rows})", [
            *(f"{self.kind(i, width)} w{i}[{PREFETCHED}];" for i in below),
            *of_each_row(f"w{i}[ahead] = {self.load(i, width)};" for i in below),
            *of_each_row(self.entries(sinks, reduced, width, names)),
        ])  # fmt: skip

    def known_sums(self, sums: Sequence[int]) -> Iterator[str]:
        """Column-wise sums, known to all threads of the one block that has summed, or else to the last block."""
        width = self.variant.width
        yield from (f"T v{i}[{width}];" for i in sums)
        if self.kernel.goes_down_again:
            yield from (f"down_columns(v{i}, r{i}, f{i});" for i in sums)
        else:
            rows = [f"scratch + {n}ll * gridDim.y * columns" for n in range(len(sums))]
            for i, at in zip(sums, rows, strict=True):
                yield f"leave(r{i}, f{i}, SUM, {at} + blockIdx.y * columns, blockDim.x, col, columns);"
            yield "if (!is_last(tickets + 1 + blockIdx.x, gridDim.y)) return;"
            for i, at in zip(sums, rows, strict=True):
                yield f"collected(v{i}, SUM, {at}, gridDim.y, blockDim.x, col, columns);"
        self.known |= {("value", i): f"v{i}[k]" for i in sums}

    def rows(self) -> Iterator[str]:
        width, kernel = self.variant.width, self.kernel
        if not self.variant.spread:
            yield from (f"T t{i}[{width}] = {{}}, e{i}[{width}] = {{}};" for i in self.column_sums)
        body = [
            "const long long row = first + threadIdx.y;",
            "const bool there = row < rows;  // a row that is not there has no entries",
            "const long long stop = there ? columns : 0;",
        ]
        for i, (layout, _) in enumerate(kernel.operands):
            if layout == "per_row":
                body.append(f"const T x{i} = there ? get(p{i}[row]) : (T)0;")
                self.known["operand", i] = f"x{i}"
        for phase in range(1 + max([0, *(phase for _, _, phase, _ in kernel.results)])):
            body += self.phase(phase)
        rows = "first = (long long)blockIdx.x * blockDim.y; first < rows; first += (long long)gridDim.x * blockDim.y"
        yield from _block(f"for (long long {rows})", body)

    def phase(self, phase: int) -> Iterator[str]:
        kernel = self.kernel
        along = [
            i for i, (_, _, p, of) in enumerate(kernel.results) if p == phase and of in ("full", "per_column", "window")
        ]
        single = [i for i, (_, _, p, _) in enumerate(kernel.results) if p == phase and i not in along]
        reduced = {i: e[3] for i, e in enumerate(kernel.expressions) if e[0] in ROW_REDUCTIONS and e[2] == phase}
        yield from self.the_same(("scalar", "per_row"), phase)
        yield from (f"T r{i} = nothing({_op(kernel.expressions[i][0])}), f{i} = 0;" for i in reduced)
        if along or reduced:
            yield from self.across("(long long)threadIdx.x", "stop", "blockDim.x", along, reduced)
        for i in reduced:
            yield f"const T v{i} = along_row(rounded(r{i}, f{i}), {_op(kernel.expressions[i][0])});"
            self.known["value", i] = f"v{i}"
        written = []
        for i in single:
            kind, reference, _, layout = kernel.results[i]
            name = self.name(reference, self.known)
            if kind.startswith("store"):
                written.append(f"put(q{i}[{'row' if layout == 'per_row' else '0'}], {name});")
            else:
                written.append(f"join(t{i}[0], e{i}[0], {name}, {_op(kind)});")
        if written:
            yield from _block("if (there && threadIdx.x == 0)", written)

    # ---- sums of blocks -----------------------------------------------------------------------------------------

    def epilogue(self) -> Iterator[str]:
        """Partial results of the threads of a block, and then of all blocks, by the last of them."""
        if self.form == "columns":
            across, block, blocks = "blockIdx.x * blockDim.x + threadIdx.x", "blockIdx.y", "gridDim.y"
            ticket = "tickets + 1 + blockIdx.x"
        else:
            across, block, blocks, ticket = "threadIdx.x", "blockIdx.x", "gridDim.x", "tickets + 1"
        if self.column_sums and not self.variant.spread:
            yield f"const long long mine = ((long long){across}) * {self.variant.width};"
            yield from self.joined(self.column_sums, "scratch", block, blocks, ticket, "columns", "blockDim.x, mine")
        scratch, every = f"scratch + {len(self.column_sums)}ll * {blocks} * columns", "(long long)gridDim.x * gridDim.y"
        if self.full:
            block = "blockIdx.y * gridDim.x + blockIdx.x"
            yield from self.joined(self.full, scratch, block, every, "tickets", "1", "1, 0")

    def joined(
        self, results: Sequence[int], scratch: str, block: str, blocks: str, ticket: str, columns: str, which: str
    ) -> Iterator[str]:
        """Results of so many blocks, for each of which scratch memory has a row of so many columns from every block."""
        width = 1 if columns == "1" else self.variant.width
        ops = [_op(self.kernel.results[i][0]) for i in results]
        rows = [f"{scratch} + {n}ll * {blocks} * {columns}" for n in range(len(results))]
        for i, op, at in zip(results, ops, rows, strict=True):
            yield f"leave(t{i}, e{i}, {op}, {at} + {block} * {columns}, {which}, {columns});"
        yield from _block(f"if (is_last({ticket}, {blocks}))", (
            f"collect<{width}>(q{i}, {op}, {at}, {blocks}, {which}, {columns});"
            for i, op, at in zip(results, ops, rows, strict=True)
        ))  # fmt: skip


def _per_column(result: KernelResult) -> bool:
    """Whether there is one for each column to store, not one for each entry."""
    return result[0].startswith("store") and result[3] == "per_column"


def _block(head: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"{head} {{"
    yield from (line if line.startswith("#") else f"    {line}" for line in lines)
    yield "}"


def _op(kind: str) -> str:
    """What device.py calls the operation that a reduction joins by: row_max is MAX."""
    return kind.partition("_")[2].upper()
