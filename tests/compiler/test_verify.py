"""The verifier finds what is wrong in a graph, in a memory plan, and in a list of commands."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bpnet.compiler.build import build
from bpnet.compiler.commands import ARENA, Address, CommandList, Fused
from bpnet.compiler.fuse import fuse
from bpnet.compiler.graph import Graph
from bpnet.compiler.memory import Memory, allocate
from bpnet.compiler.trace import Namespace, Traced, trace
from bpnet.compiler.verify import VerificationError, verify_commands, verify_graph, verify_memory


def softmax(graph: Graph, symbols: list[Any]) -> list[Any]:
    """Two products of which one is of a softmax, so that arrays lie in the arena."""
    xp, (x, w) = Namespace(graph), symbols
    e = xp.exp(xp.matmul(x, w))
    return [xp.matmul(x, e / xp.sum(e, axis=1, keepdims=True))]


def traced() -> Traced:
    return trace(softmax, [((5, 5), "float32"), ((5, 5), "float32")])


def commands() -> CommandList:
    return build(traced())


def test_what_the_compiler_makes_is_right() -> None:
    verify_commands(commands())


def changed(found: CommandList, number: int, **fields: Any) -> CommandList:
    some = list(found.commands)
    some[number] = replace(some[number], **fields)
    return replace(found, commands=tuple(some))


def kernel_with(found: CommandList, **fields: Any) -> CommandList:
    fused = found.commands[1]
    assert isinstance(fused, Fused)
    return changed(found, 1, kernel=replace(fused.kernel, **fields))


def late(found: CommandList) -> Any:
    """The kernel's expressions, in which a row-wise sum is read in the phase that computes it."""
    assert isinstance(found.commands[1], Fused)
    return tuple((e[0], e[1], 0, *e[3:]) for e in found.commands[1].kernel.expressions)


def by_row(found: CommandList) -> Any:
    """The kernel's expressions, in which a row-wise sum is of what has one entry a row."""
    assert isinstance(found.commands[1], Fused)
    return tuple((e[0], "per_row", *e[2:]) for e in found.commands[1].kernel.expressions)


WRONG: dict[str, tuple[str, Callable[[CommandList], CommandList]]] = {
    "order": ("before it is written", lambda c: replace(c, commands=c.commands[::-1])),
    "left out": ("not written", lambda c: replace(c, commands=c.commands[:-1])),
    "small arena": ("outside of its memory", lambda c: replace(c, arena=c.arena - 64)),
    "outside": ("outside of its memory", lambda c: changed(c, 0, out=Address(ARENA, c.arena))),
    "no memory": ("a memory that is none", lambda c: changed(c, 0, out=Address(9, 0))),
    "alignment": ("not aligned", lambda c: changed(c, 0, out=Address(ARENA, 2))),
    "product in place": ("while it reads", lambda c: changed(c, 2, out=c.commands[2].b.address)),  # type: ignore[union-attr]
    "too few operands": ("not given what", lambda c: changed(c, 1, operands=())),
    "a number that is none": ("a number that is none", lambda c: changed(kernel_with(c, numbers=1), 1, numbers=(0,))),
    "a sum of one": ("of what has one entry a row", lambda c: kernel_with(c, expressions=by_row(c))),
    "an early phase": ("before it is known", lambda c: kernel_with(c, expressions=late(c))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_commands_are_found(name: str) -> None:
    message, change = WRONG[name]
    with pytest.raises(VerificationError, match=message):
        verify_commands(change(commands()))


def test_wrong_graphs_are_found() -> None:
    for change in (
        lambda s: setattr(s[5], "shape", (5, 4)),
        lambda s: setattr(s[3], "op", "expo"),
        lambda s: setattr(s[3], "args", (s[4],)),
        lambda s: setattr(s[3], "args", (s[2], s[2])),
        lambda s: setattr(s[4], "shape", (5, 5)),
    ):
        graph = traced().graph
        verify_graph(graph)
        change(graph.symbols)
        with pytest.raises(VerificationError):
            verify_graph(graph)


def test_arrays_that_share_memory_while_both_are_needed_are_found() -> None:
    found = traced()
    fusion = fuse(found.graph, [(s, 4) for s in found.results if s is not None])
    memory = allocate(fusion, 64)
    verify_memory(fusion, memory)
    with pytest.raises(VerificationError, match="share memory"):
        verify_memory(fusion, Memory(dict.fromkeys(memory.addresses, Address(ARENA, 0)), memory.inside, memory.arena))
    with pytest.raises(VerificationError, match="outside the arena"):
        verify_memory(fusion, replace(memory, arena=0))
