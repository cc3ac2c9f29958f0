"""The compiler: functions that have been written become machine code, which is kept on disk."""

import ctypes
import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import llvmlite
from llvmlite import binding as llvm
from llvmlite import ir

from bpnet.compiler.llvm import cache

_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_engines: list[Any] = []
"""Kept for good: the machine code lies in them."""
_addresses: dict[str, int] = {}


NEEDED = 2**23
"""Bytes that are to be free before a function is compiled: LLVM ends the process where it gets no memory."""
AS_WRITTEN = ("product",)
"""What is written vector by vector and unrolled, so that LLVM's passes would take most of the time and gain nothing."""


def compiled(name: str, write: Callable[[ir.Module, str], None], key: str) -> int:
    """The address of the function that `write(module, name)` writes; `key` tells apart all that it may write.

    The machine code is kept on disk, by key, processor and compiler, where there is a place to write.
    """
    address = _addresses.get(key)
    return _apart(lambda: _known_or_compiled(name, write, key)) if address is None else address


def _apart(function: Callable[[], int]) -> int:
    """What the function gives, called in a thread of its own, which no interrupt reaches.

    For llvmlite has a lock that an interrupt may leave taken.  Where one ends the wait, the thread goes on to its end,
    for which the interpreter's waits too.
    """
    made: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            made.put((function(), None))
        except BaseException as error:
            made.put((0, error))

    try:
        threading.Thread(target=work, name="bpnet-compiler", daemon=False).start()
    except RuntimeError:  # no more threads can be had
        return function()
    address, error = made.get()
    if error is not None:
        raise error
    return address


def _known_or_compiled(name: str, write: Callable[[ir.Module, str], None], key: str) -> int:
    with _lock:
        if key not in _addresses:
            _addresses[key] = _compile(name, write, key)
        return _addresses[key]


def _compile(name: str, write: Callable[[ir.Module, str], None], key: str) -> int:
    try:
        mmap.mmap(-1, NEEDED).close()
    except OSError as error:
        raise MemoryError(f"{NEEDED:,} bytes to compile a function: {error}") from error
    digest = hashlib.sha256("\n".join((key, _sources(), *_identity())).encode()).digest()
    file = f"{name}-{digest.hex()[:24]}.o"
    code = cache.read(file, digest)
    if code is None:
        code = _machine_code(name, write)
        cache.write(file, digest, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = int(engine.get_function_address(name))
    if not address:
        raise RuntimeError(f"the compiler gave no function {name}")
    return address


def _machine_code(name: str, write: Callable[[ir.Module, str], None]) -> bytes:
    machine = _machine()
    code: bytes = machine.emit_object(written(name, write, machine))
    return code


def written(name: str, write: Callable[[ir.Module, str], None], machine: Any, kind: str | None = None) -> Any:
    """The module in which `write(module, name)` has written a function of a kind (None: its name), for a machine."""
    module = ir.Module(name)
    module.triple = llvm.get_default_triple()
    write(module, name)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    if (kind or name) not in AS_WRITTEN:
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(parsed, passes)
    return parsed


def _machine() -> Any:
    """A new description of this processor: a compiler keeps the one that it is given."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = _identity()[1:3]
    return llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=3)


@lru_cache(maxsize=1)
def _identity() -> tuple[str, ...]:
    """All besides the key and the texts here that decides about the machine code."""
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return llvmlite.__version__, *processor, llvm.get_default_triple(), str(llvm.llvm_version_info)


@lru_cache(maxsize=1)
def _sources() -> str:
    """The hash of all that decides what functions are written: a change of it makes new machine code."""
    return cache.hash_of(Path(__file__).parents[1].rglob("*.py"))


def callable_at(address: int, *kinds: Any) -> Any:
    """The function at an address, to be called from Python; the interpreter's lock is released meanwhile."""
    return ctypes.CFUNCTYPE(None, *kinds)(address)
