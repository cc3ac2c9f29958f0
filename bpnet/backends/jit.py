"""Traced rules as machine code, by Numba where the `jit` extra is installed: one pass over memory, with the same bits.

Importing Numba takes longer than a short training, so it begins only after so much work that it will pay, in a thread
of its own; until it is ready, NumPy runs.  Since only operations that IEEE 754 rounds exactly are translated, and none
are fused or reordered, no result tells when the one took over from the other.
"""

import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy

from bpnet.backends.base import Array, Rule
from bpnet.backends.trace import BINARY, NotTraceableError, Program, Symbol

WORTH_IT = 2e8
"""Elements that NumPy handles before Numba is fetched: about a second of work."""

Loop = Callable[[Sequence[Array], Sequence[float]], None]
"""loop(arrays, scalars): writes the rule's results over the first arrays."""


Key = tuple[Rule, int, int, Any]
"""A rule, its numbers of arrays and scalars, and the arrays' type."""


class Jit:
    """Machine code for rules, by rule and float type: made in the background once enough elements have been handled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.handled = 0
        self.loops: dict[Key, Loop | None] = {}

    def loop(self, rule: Rule, arrays: Sequence[Array], scalars: int, wanted: bool | None) -> Loop | None:
        """The loop where it is ready.  `wanted`: True waits for it, False gives none, None lets the work decide."""
        if wanted is False:
            return None
        key = (rule, len(arrays), scalars, arrays[0].dtype)
        if key in self.loops:
            return self.loops[key]
        with self.lock:
            self.handled += arrays[0].size
            if key in self.loops or (wanted is None and self.handled < WORTH_IT):
                return self.loops.get(key)
            self.loops[key] = None
        if wanted:
            self.make(key)
        else:
            threading.Thread(target=self.make, args=(key,), name="bpnet-jit", daemon=True).start()
        return self.loops[key]

    def make(self, key: Key) -> None:
        rule, arrays, scalars, dtype = key
        if importlib.util.find_spec("numba") is None:
            return
        try:
            source = loop_source(Program(rule, arrays, scalars))
        except NotTraceableError:
            return
        self.loops[key] = _compiled(source, dtype.type, arrays, scalars)


def loop_source(program: Program) -> str:
    """Python text of `prepare(T, scalars)`, done once, and of `loop(arrays, constants)`, done for every element.

    The i-th result is written over the i-th array, so that the compiler sees that no two arrays share memory.
    """
    names = {id(a): f"v{i}" for i, a in enumerate(program.arrays)}
    names |= {id(s): f"s{i}" for i, s in enumerate(program.scalars)}
    constants: dict[str, str] = {}
    once: list[str] = []
    each: list[str] = []

    def of(value: Any, scalar: bool) -> str:
        if isinstance(value, Symbol) and (scalar or not value.scalar):
            return names[id(value)]
        text = names[id(value)] if isinstance(value, Symbol) else repr(float(value))
        return text if scalar else constants.setdefault(text, f"c{len(constants)}")

    signs = {name: sign for sign, name in BINARY.items()}
    for i, step in enumerate(program.steps):
        names[id(step)] = f"x{i}"
        args = [of(a, step.scalar) for a in step.args]
        if step.op in signs:
            text = f" {signs[step.op]} ".join(args)
        elif step.op == "sqrt" and not step.scalar:
            text = f"sqrt({args[0]})"
        else:  # not rounded exactly, so NumPy and a compiler need not agree
            raise NotTraceableError(step.op)
        (once if step.scalar else each).append(f"x{i} = {text}")
    inputs = "".join(f"a{i}, " for i in range(len(program.arrays)))
    lines = [
        "from numpy import sqrt",
        f"def prepare(T, {', '.join(f's{i}' for i in range(len(program.scalars)))}):",
        *(f"    {line}" for line in once),
        f"    return ({''.join(f'T({text}), ' for text in constants)})",
        f"def loop({inputs}{', '.join(constants.values())}):",
        "    for i in range(a0.size):",
        *(f"        v{i} = a{i}[i]" for i in range(len(program.arrays))),
        *(f"        {line}" for line in each),
        *(f"        a{i}[i] = {names[id(result)]}" for i, result in enumerate(program.results)),
    ]
    return "\n".join(lines) + "\n"


def _compiled(source: str, scalar: type, arrays: int, scalars: int) -> Loop:
    """The loop, compiled; kept on disk from one process to the next where there is a place to write."""
    import numba

    space, kept = _module(source)
    # "numpy": a division by zero gives infinity, as NumPy's does, and not an exception, which could not be vectorized
    run = numba.njit(nogil=True, error_model="numpy", cache=kept)(space["loop"])
    prepare = space["prepare"]

    def loop(vectors: Sequence[Array], numbers: Sequence[float]) -> None:
        run(*vectors, *prepare(scalar, *numbers))

    loop([numpy.empty(0, scalar)] * arrays, [0.5] * scalars)  # compiles it, or reads it from disk
    return loop


def _module(source: str) -> tuple[dict[str, Any], bool]:
    """The names that `source` defines, and whether they come from a file, beside which Numba can keep machine code."""
    name = f"bpnet_rule_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    path = cache_folder() / f"{name}.py"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != source:
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(source)
            os.replace(part, path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where Numba looks for the function when it reads its cache
        spec.loader.exec_module(module)
        return vars(module), os.access(path.parent, os.W_OK)
    except OSError:
        space: dict[str, Any] = {}
        exec(compile(source, name, "exec"), space)  # text made above of names chosen there
        return space, False


def cache_folder() -> Path:
    """Where compiled rules are kept: $BPNET_CACHE_DIR, else bpnet in the user's cache folder."""
    chosen = os.environ.get("BPNET_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "bpnet"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bpnet"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bpnet"


JIT = Jit()
