"""The thread pool: threads that carry out a list of commands together, each cut into tiles that they take one by one.

A command is four whole numbers: the address of its function, the address of its arguments, its number of tiles, and
nothing; the function is function(arguments, tile, bases, scratch).  Commands are carried out one after the other.
Workers wait awake until a list is done and a short while longer, since waking a sleeping thread takes 100 us;
where none is awake, whoever runs the list does all of it.
"""

import ctypes
import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy
from llvmlite import ir

from bpnet.compiler.llvm.builder import BYTES, I32, I64, REALS, VOID, Function, Kernel, Pointer
from bpnet.compiler.llvm.jit import callable_at, compiled
from bpnet.compiler.llvm.products import Blocking

STATE, DONE, COMMANDS, BASES, ADMITTED, BUSY, SIZE = 0, 16, 32, 33, 34, 48, 64
"""Places in the memory that a pool shares, 8 bytes each, those that change often on lines of their own.

STATE: 2**32 times the number of the command at hand (0: none), plus its next tile.  DONE: its tiles that are done.
ADMITTED: how many workers may take part.  BUSY: workers that may be reading the list.
"""
BEGUN, TABLE = 6, 7
"""Of a table: where it says that its list has begun, and its size."""
SPINS = 30_000
"""Looks at the state after which an idle worker goes to sleep, about a millisecond."""
TILES = 2**32


def _field(f: Function, commands: Any, index: Any, field: int) -> Any:
    return f.load(f.at(commands, f.add(f.mul(index, 4), field)))


def _call(f: Function, commands: Any, index: Any, tile: Any, bases: Any, scratch: Any) -> None:
    function = f.inttoptr(_field(f, commands, index, 0), Pointer(ir.FunctionType(VOID, Kernel.TYPES)))
    arguments = f.inttoptr(_field(f, commands, index, 1), Pointer(I64))
    f.call(function, [arguments, tile, bases, scratch])


def _get(f: Function, pool: Any, field: int) -> Any:
    return f.load_atomic(f.at(pool, field), "seq_cst", 8, typ=I64)


def _set(f: Function, pool: Any, field: int, value: Any) -> None:
    f.store_atomic(f.number(value), f.at(pool, field), "seq_cst", 8)


def _add(f: Function, pool: Any, field: int, value: int) -> None:
    f.atomic_rmw("add", f.at(pool, field), f.number(value), "seq_cst")


def _take(f: Function, pool: Any, state: Any) -> Any:
    """Whether the tile of `state` is now this thread's."""
    return f.extract_value(f.cmpxchg(f.at(pool, STATE), state, f.add(state, 1), "seq_cst", "seq_cst"), 1)


def _pause(f: Function, turn: Any) -> None:
    """Tell the processor that this is waiting; every 64th turn, where there is POSIX, let another thread have it."""
    if f.module.triple.startswith(("x86", "i386", "i686", "amd64")):
        f.intrinsic("x86.sse2.pause", VOID, [])
    if os.name == "posix":
        with f.if_then(f.compare(f.and_(turn, 63), "==", 63)):
            known = f.module.globals.get("sched_yield")
            f.call(known or ir.Function(f.module, ir.FunctionType(I32, []), "sched_yield"), [])


def _wait(f: Function, pool: Any, field: int, value: Any, before: Any, wait: Any, end: Any) -> None:
    """Wait in the block `wait`, to which `before` leads, until the field has this value, and go on in `end`."""
    f.position_at_end(wait)
    turn = f.phi_from(0, before)
    _pause(f, turn)
    done = f.compare(_get(f, pool, field), "==", value)
    turn.add_incoming(f.add(turn, 1), f.block)
    f.cbranch(done, end, wait)
    f.position_at_end(end)


def write_run(module: ir.Module, name: str) -> None:
    """run(table): carry out a list.

    `table`: the addresses of the commands, their number, the addresses of the memories, of memory for this thread, and
    of what the pool shares, or 0 to be alone; how many workers may take part; and a place for 1 once it has begun.
    """
    f = Function(module, name, [Pointer(I64)], public=True)
    (table,) = f.arguments
    f.store(f.number(1), f.at(table, BEGUN))
    commands, count, bases, scratch, pool, admitted = (f.load(f.at(table, i)) for i in range(6))
    commands, pool = (f.inttoptr(address, Pointer(I64)) for address in (commands, pool))
    bases, scratch = f.inttoptr(bases, Pointer(BYTES)), f.inttoptr(scratch, BYTES)
    alone = f.icmp_unsigned("==", f.ptrtoint(pool, I64), 0)
    with f.if_then(f.not_(alone)):
        f.store(f.ptrtoint(commands, I64), f.at(pool, COMMANDS))
        f.store(f.ptrtoint(bases, I64), f.at(pool, BASES))
        f.store(admitted, f.at(pool, ADMITTED))
    with f.loop(0, count) as i:
        tiles = _field(f, commands, i.index, 2)
        with f.if_else(f.or_(alone, f.compare(tiles, "==", 1))) as (by_itself, together):
            with by_itself, f.loop(0, tiles) as tile:
                _call(f, commands, i.index, tile.index, bases, scratch)
            with together:
                _set(f, pool, DONE, 0)
                _set(f, pool, STATE, f.mul(f.add(i.index, 1), TILES))
                head, mine, other, wait, end = f.blocks("head", "mine", "other", "wait", "end")
                f.branch(head)
                f.position_at_end(head)
                state = _get(f, pool, STATE)
                tile = f.and_(state, TILES - 1)
                f.cbranch(f.compare(tile, "<", tiles), mine, wait)
                f.position_at_end(mine)
                f.cbranch(_take(f, pool, state), other, head)
                f.position_at_end(other)
                _call(f, commands, i.index, tile, bases, scratch)
                _add(f, pool, DONE, 1)
                f.branch(head)
                _wait(f, pool, DONE, tiles, head, wait, end)
    with f.if_then(f.not_(alone)):
        _set(f, pool, STATE, 0)
        before, (wait, end) = f.block, f.blocks("wait", "end")
        f.branch(wait)
        _wait(f, pool, BUSY, 0, before, wait, end)  # the list may be gone once this function has returned
    f.ret_void()


def write_help(module: ir.Module, name: str) -> None:
    """help(pool, scratch, spins, number): take tiles until there were none for so many looks, as worker `number`."""
    f = Function(module, name, [Pointer(I64), BYTES, I64, I64], public=True)
    pool, scratch, spins, number = f.arguments
    before = f.block
    names = ("head", "there", "ours", "take", "work", "leave", "idle", "end")
    head, there, ours, take, work, leave, idle, end = f.blocks(*names)
    f.branch(head)
    f.position_at_end(head)
    turns = f.phi_from(0, before)
    f.cbranch(f.icmp_unsigned("<", _get(f, pool, STATE), TILES), idle, there)

    f.position_at_end(there)  # whoever runs the list waits for BUSY before it goes away
    _add(f, pool, BUSY, 1)
    state = _get(f, pool, STATE)
    f.cbranch(f.icmp_unsigned("<", state, TILES), leave, ours)

    f.position_at_end(ours)
    commands = f.inttoptr(f.load(f.at(pool, COMMANDS)), Pointer(I64))
    bases = f.inttoptr(f.load(f.at(pool, BASES)), Pointer(BYTES))
    index = f.sub(f.lshr(state, 32), 1)
    tile = f.and_(state, TILES - 1)
    admitted = f.compare(number, "<", f.load(f.at(pool, ADMITTED)))
    f.cbranch(f.and_(admitted, f.compare(tile, "<", _field(f, commands, index, 2))), take, leave)

    f.position_at_end(take)
    f.cbranch(_take(f, pool, state), work, leave)

    f.position_at_end(work)
    _call(f, commands, index, tile, bases, scratch)
    _add(f, pool, DONE, 1)
    f.branch(leave)

    f.position_at_end(leave)
    useful = f.phi(I64)
    for block, value in ((there, 1), (ours, 1), (take, 0), (work, 0)):
        useful.add_incoming(f.number(value), block)
    _add(f, pool, BUSY, -1)
    turns.add_incoming(f.select(f.compare(useful, "==", 0), 0, f.add(turns, 1)), f.block)
    f.branch(head)

    f.position_at_end(idle)
    _pause(f, turns)
    turns.add_incoming(f.add(turns, 1), f.block)
    f.cbranch(f.compare(turns, "<", spins), head, end)
    f.position_at_end(end)
    f.ret_void()


class ThreadPool:
    """The workers of this process, and the memory in which they find what is next."""

    def __init__(self) -> None:
        self.scratch = _scratch()
        self.forget()

    def forget(self) -> None:
        """In a forked child the workers are gone."""
        self.lock, self.at_work = threading.Lock(), 0
        self.memory = numpy.zeros(SIZE, numpy.int64)
        self.workers: list[_Worker] = []
        self.run_native: Any = None

    def run(self, table: "CommandTable", state: Any = None, now: Any = None) -> None:
        """Carry out a list, after which `now` is what `state` holds: no interrupt comes in between.

        Where another thread is at it, this one works alone, with memory of its own.
        """
        run = self.run_native or self._compile()
        if self.lock.locked():
            own = _scratch()
            alone = (ctypes.c_int64 * TABLE)(*table.header[:3], _aligned(own))
            self._carry_out(run, alone, state, now)
            return
        with self.lock:
            try:
                if table.threads > 1:
                    self._wake_workers(table)
                self._carry_out(run, table.header, state, now)
            finally:
                self.at_work = 0

    def _carry_out(self, run: Any, header: Any, state: Any, now: Any) -> None:
        if state is None:
            run(header)
            return
        before, header[BEGUN] = state.now, 0
        try:
            state.now = now  # first: an interrupt may come after `run`, but not between this and its end
            run(header)
        except BaseException:
            if not header[BEGUN]:  # as where there is no memory for the call
                state.now = before
            raise

    def _wake_workers(self, table: "CommandTable") -> None:
        while len(self.workers) < table.threads - 1:
            try:
                self.workers.append(_Worker(self, len(self.workers)))
            except (
                RuntimeError,
                MemoryError,
            ):  # no more threads can be had: the list is carried out by those there are
                break
        self.at_work = table.threads - 1  # before looking who is awake: who falls asleep looks at this after
        for worker in self.workers[: table.threads - 1]:
            if not worker.awake:
                worker.called.put(None)
        table.header[4] = self.memory.ctypes.data

    def _compile(self) -> Any:
        self.run_native = callable_at(compiled("run", write_run, "run"), ctypes.c_void_p)
        return self.run_native


class CommandTable:
    """A list of commands, (n, 4) whole numbers, with memories that lie at `bases`, for so many threads."""

    def __init__(self, commands: Any, bases: int, threads: int) -> None:
        self.commands, self.threads = commands, threads
        self.header = (ctypes.c_int64 * TABLE)(
            commands.ctypes.data, len(commands), bases, _aligned(POOL.scratch), 0, threads - 1
        )


class _Worker:
    def __init__(self, pool: ThreadPool, number: int) -> None:
        self.pool, self.memory, self.number, self.awake = pool, pool.memory, number, False
        self.scratch = _scratch()
        self.called: SimpleQueue[None] = SimpleQueue()  # whose `put` no interrupt can break off, as it can an Event's
        kinds = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        self.help = callable_at(compiled("help", write_help, "help"), *kinds)
        threading.Thread(target=self.serve, name=f"bpnet-native-{number}", daemon=True).start()

    def serve(self) -> None:
        while True:
            self.called.get()
            with suppress(MemoryError, ctypes.ArgumentError):  # whoever runs a list does without
                self.awake = True
                while self.awake:
                    self.help(self.memory.ctypes.data, _aligned(self.scratch), SPINS, self.number)
                    self.awake = False
                    self.awake = self.number < self.pool.at_work  # nobody is woken in the midst of a list
            self.awake = False


def _scratch() -> Any:
    """Memory that a thread needs for any product; only what is written to is taken from the system."""
    return numpy.empty(max(Blocking(dtype).scratch for dtype in REALS) + 64, numpy.uint8)


def _aligned(memory: Any) -> int:
    address: int = memory.ctypes.data
    return -(-address // 64) * 64


POOL = ThreadPool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)
