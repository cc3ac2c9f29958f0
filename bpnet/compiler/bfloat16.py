"""Products of factors rounded to bfloat16: where the rounded factors lie, and what else need not be stored in float32.

A kernel that stores a factor stores it rounded; what products alone read is then stored in no other form.  Comparisons
with 0 read the rounded form too, which has the same sign, but for numbers below 2**-133, which become 0.  Everything
else reads float32, so what a network adds up from layer to layer keeps its digits.
"""

from collections.abc import Callable
from dataclasses import replace

from bpnet.compiler.commands import ARENA, Address, Command, CommandList, Fused, FusedKernel, Product, Span, reads
from bpnet.compiler.epilogues import epilogue_name, spans_read, spans_written
from bpnet.compiler.memory import arrange
from bpnet.compiler.ops import COMPARISONS

STORE = "store:bfloat16"
"""The kind of a kernel's result that is stored so."""


def round_factors(commands: CommandList, alignment: int = 256) -> CommandList:
    """The same commands with products in bfloat16, whose sums and results are float32."""
    pass_ = _Rounding(commands)
    for command in commands.commands:
        pass_.add(command)
    pass_.drop_unread()
    pass_.round_biases()
    return pass_.result(alignment)


class _Rounding:
    """`made` are the commands so far; rounded copies lie in memories of their own, numbered below 0, until the end."""

    def __init__(self, commands: CommandList) -> None:
        self.commands = commands
        self.made: list[Command] = []
        self.copies: dict[Span, Address] = {}
        """Where the rounded form of a span of float32 lies, until that is written to."""
        self.whole_copies: dict[int, Address] = {}
        """Those of whole arguments, by their memory."""
        self.sizes: list[int] = []
        """Bytes of each copy."""
        needed: dict[int, set[int]] = {}
        for command in commands.commands:
            if isinstance(command, Product):
                for matrix in (command.a, command.b):
                    needed.setdefault(matrix.address.memory, set()).add(matrix.address.offset)
        self.whole = {
            a.memory: a.span
            for a in commands.arguments
            if a is not None and all(offset % 32 == 0 for offset in needed.get(a.memory, {1}))
        }
        """The arguments that are rounded as a whole, since all factors in them then begin at 16 bytes."""

    def add(self, command: Command) -> None:
        if isinstance(command, Product):
            factors = zip((command.a, command.b), reads(command)[:2], strict=True)
            a, b = (replace(matrix, address=self.copy_of(array.span)) for matrix, array in factors)
            command = replace(command, a=a, b=b, precision="bfloat16")
        elif isinstance(command, Fused):
            command = self.comparing(command)
        for span in spans_written(command):
            self.copies = {other: address for other, address in self.copies.items() if not other.overlaps(span)}
        self.made.append(command)

    def copy_of(self, span: Span) -> Address:
        """Where the rounded form of a span lies."""
        whole = self.whole.get(span.memory, span)
        if whole not in self.copies:
            size = whole.stop - whole.start
            self.copies[whole] = address = self.new(size // 2)
            if span.memory in self.whole:
                self.whole_copies[span.memory] = address
            if not self.store_with_producer(whole, address):
                self.made.append(_rounding(Address(whole.memory, whole.start), address, size // 4))
        return Address(self.copies[whole].memory, (span.start - whole.start) // 2)

    def new(self, size: int) -> Address:
        self.sizes.append(size)
        return Address(-len(self.sizes), 0)

    def store_with_producer(self, span: Span, address: Address) -> bool:
        """Have the kernel that stores a span store it rounded, too; False where no kernel does."""
        for i in range(len(self.made) - 1, -1, -1):
            command = self.made[i]
            written = spans_written(command)
            if any(span.overlaps(other) for other in written):
                if not isinstance(command, Fused) or span not in written:
                    return False
                kind, reference, phase, layout = command.kernel.results[written.index(span)]
                if kind != "store" or layout != "full":
                    return False
                results = (*command.kernel.results, (STORE, reference, phase, layout))
                kernel = replace(command.kernel, results=results)
                self.made[i] = replace(command, kernel=kernel, results=(*command.results, address))
                return True
        return False

    def comparing(self, command: Fused) -> Fused:
        """The kernel, which reads rounded what it only compares with 0."""
        kernel = command.kernel
        operands, addresses = list(kernel.operands), list(command.operands)
        for i, span in enumerate(spans_read(command)):
            if span in self.copies and _only_compared(kernel, i):
                operands[i], addresses[i] = (operands[i][0], "bfloat16"), self.copies[span]
        return replace(command, kernel=replace(kernel, operands=tuple(operands)), operands=tuple(addresses))

    def drop_unread(self) -> None:
        """Take out results in float32 that nobody reads."""
        for i, command in enumerate(self.made):
            if not isinstance(command, Fused):
                continue
            spans = spans_written(command)
            kinds = ["" if layout == "window" else kind for kind, _, _, layout in command.kernel.results]
            kept = [
                n
                for n, (span, kind) in enumerate(zip(spans, kinds, strict=True))
                if kind != "store" or span[0] != ARENA or self.is_read(span, i)
            ]
            if 0 < len(kept) < len(command.results):
                kernel = replace(command.kernel, results=tuple(command.kernel.results[n] for n in kept))
                self.made[i] = replace(command, kernel=kernel, results=tuple(command.results[n] for n in kept))

    def is_read(self, span: Span, at: int) -> bool:
        """Whether a span that a command writes is read by it (in a later phase) or a later one."""
        if any(span.overlaps(other) for other in spans_read(self.made[at])):
            return True
        for command in self.made[at + 1 :]:
            if any(span.overlaps(other) for other in spans_read(command)):
                return True
            if span in spans_written(command):
                return False
        return False

    def round_biases(self) -> None:
        """Epilogues whose result is rounded take their bias in the same form."""
        before, self.made = self.made, []
        for command in before:
            if isinstance(command, Fused) and self.is_epilogue(command):
                operands = command.kernel.operands[0], ("per_column", "bfloat16")
                addresses = command.operands[0], self.bias(command)
                command = replace(command, kernel=replace(command.kernel, operands=operands), operands=addresses)
            self.made.append(command)

    def is_epilogue(self, command: Fused) -> bool:
        """Whether it adds a bias to a product, and its result is rounded."""
        rounds = [kind for kind, *_ in command.kernel.results] == [STORE]
        biased = rounds and (epilogue_name(command.kernel) or "").endswith("BIAS")
        return biased and any(isinstance(c, Product) and c.out == command.operands[0] for c in self.made)

    def bias(self, command: Fused) -> Address:
        memory, offset = command.operands[1].memory, command.operands[1].offset
        written = {span.memory for command in self.made for span in spans_written(command)}
        if memory in self.whole_copies and self.whole_copies[memory].memory in written and offset % 32 == 0:
            return Address(self.whole_copies[memory].memory, offset // 2)
        address = self.new(2 * command.columns)
        self.made.append(_rounding(command.operands[1], address, command.columns))
        return address

    def result(self, alignment: int) -> CommandList:
        """The commands, with the copies put behind the arena, where their memory is used again."""
        lives: dict[int, list[int]] = {}
        for i, command in enumerate(self.made):
            for memory, *_ in (*spans_read(command), *spans_written(command)):
                if memory < 0:
                    lives.setdefault(memory, []).append(i)
        start = -(-self.commands.arena // alignment) * alignment
        offsets, size = arrange([(self.sizes[-memory - 1], steps) for memory, steps in lives.items()], alignment)
        begins = dict(zip(lives, offsets, strict=True))

        def moved(address: Address) -> Address:
            return Address(ARENA, start + begins[address.memory] + address.offset) if address.memory < 0 else address

        made = tuple(_with_addresses(command, moved) for command in self.made)
        return replace(self.commands, commands=made, arena=start + size)


def _rounding(source: Address, target: Address, size: int) -> Fused:
    operand = (("full", "float32"),)
    kernel = FusedKernel("float32", operand, 0, 0, (), ((STORE, ("operand", 0), 0, "full"),))
    return Fused(kernel, 1, size, (source,), (), (), (), (target,))


def _only_compared(kernel: FusedKernel, operand: int) -> bool:
    """Whether all that a kernel does with an operand is to compare it with 0."""
    reference = ("operand", operand)
    if any(result[1] == reference for result in kernel.results):
        return False
    uses = [e for e in kernel.expressions if reference in e[3:]]
    return bool(uses) and all(e[0] in COMPARISONS and ("literal", 0.0) in e[3:] for e in uses)


def _with_addresses(command: Command, at: Callable[[Address], Address]) -> Command:
    """The command with its arrays at other addresses."""
    if isinstance(command, Fused):
        return replace(command, operands=tuple(map(at, command.operands)), results=tuple(map(at, command.results)))
    if isinstance(command, Product):
        a, b = (replace(m, address=at(m.address)) for m in (command.a, command.b))
        return replace(command, a=a, b=b)
    return command
