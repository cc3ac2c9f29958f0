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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpnet.backends.base import Array, Rule
from bpnet.backends.trace import BINARY, COMPARISONS, NotTraceableError, Program, text_of
from bpnet.errors import MissingExtraError

WORTH_IT = 2e8
"""Elements that NumPy handles before Numba is fetched: about a second of work."""

MOST = 256
"""Loops of a process; a search over an activation's options would go on compiling."""

Loop = Callable[[Sequence[Array], Sequence[float]], None]
"""loop(arrays, scalars)."""


@dataclass(frozen=True)
class Form:
    """What a loop is made for: how it runs, a rule, its numbers of arrays and scalars, and the arrays' type.

    "sweep": over vectors; the results are written over the first of them.
    "forward": z <- rule(z + bias), for a matrix z and a vector; arrays z, bias.
    "backward": dz <- rule(kept, dy) and the sums of its columns, of so many rows at a time and then of these sums;
    arrays kept, dy, dz, sums, memory of the size of sums; scalar rows.
    """

    kind: str
    rule: Rule
    arrays: int
    scalars: int
    dtype: Any


class Jit:
    """Machine code for rules, by rule and float type: made in the background once enough elements have been handled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.handled = 0
        self.loops: dict[Form, Loop | None] = {}

    def loop(self, form: Form, size: int, wanted: bool | None) -> Loop | None:
        """The loop where it is ready; it is wanted for `size` elements.

        `wanted`: True waits for it, False gives none, None lets the work that it could have done decide.
        """
        if wanted is False:
            return None
        if form in self.loops:
            return self.loops[form]
        with self.lock:
            self.handled += size
            if form in self.loops or len(self.loops) >= MOST or (wanted is None and self.handled < WORTH_IT):
                return self.loops.get(form)
            self.loops[form] = None
        if wanted:
            if importlib.util.find_spec("numba") is None:
                raise MissingExtraError("jit = True of the numpy backend", "Numba", "jit")
            self.make(form)
        else:
            threading.Thread(target=self.make, args=(form,), name="bpnet-jit", daemon=True).start()
        return self.loops[form]

    def make(self, form: Form) -> None:
        if importlib.util.find_spec("numba") is None:
            return
        try:
            self.loops[form] = _compiled(form)
        except NotTraceableError:
            return


def loop_source(form: Form) -> str:
    """Python text of `prepare(T, *scalars)`, done once, and of `loop(...)`, done for every element."""
    text = text_of(Program(form.rule, {"forward": 1, "backward": 2}.get(form.kind, form.arrays), form.scalars), _python)
    head, body = _SHAPES[form.kind](form.arrays, [f"{name} = {value}" for name, value in text.lines], text.results)
    return "\n".join(
        [
            "from numpy import sqrt",
            text.prepare,
            f"def loop({', '.join([*head, *text.constants])}):",
            *(f"    {line}" for line in body),
            "",
        ]
    )


def _python(op: str, args: Sequence[str], constant: Callable[[float], str]) -> str:
    """An operation that IEEE 754 rounds exactly; of others a compiler and NumPy need not make the same."""
    signs = {name: sign for sign, name in (BINARY | COMPARISONS).items()}
    if op in signs:
        return f" {signs[op]} ".join(args)
    if op == "sqrt":
        return f"sqrt({args[0]})"
    if op == "maximum":
        return f"{args[0]} if {args[0]} >= {args[1]} or {args[0]} != {args[0]} else {args[1]}"
    if op == "astype":
        return f"{constant(1.0)} if {args[0]} else {constant(0.0)}"
    raise NotTraceableError(op)


def _sweep(arrays: int, each: list[str], results: Sequence[str]) -> tuple[list[str], list[str]]:
    """The i-th result is written over the i-th array, so that the compiler sees that no two arrays share memory."""
    head = [f"a{i}" for i in range(arrays)]
    lines = [f"v{i} = a{i}[i]" for i in range(arrays)] + each + [f"a{i}[i] = {r}" for i, r in enumerate(results)]
    return head, ["for i in range(a0.size):", *(f"    {line}" for line in lines)]


def _forward(arrays: int, each: list[str], results: Sequence[str]) -> tuple[list[str], list[str]]:
    lines = ["v0 = z[i, j] + bias[j]", *each, f"z[i, j] = {results[0]}"]
    body = ["for i in range(z.shape[0]):", "    for j in range(bias.size):", *(f"        {line}" for line in lines)]
    return ["z", "bias"], body


def _backward(arrays: int, each: list[str], results: Sequence[str]) -> tuple[list[str], list[str]]:
    lines = ["v0 = kept[i, j]", "v1 = dy[i, j]", *each, f"dz[i, j] = {results[0]}", f"part[j] += {results[0]}"]
    body = [
        "sums[:] = 0.0",
        "for start in range(0, dy.shape[0], rows):",
        "    part[:] = 0.0",
        "    for i in range(start, min(start + rows, dy.shape[0])):",
        "        for j in range(part.size):",
        *(f"            {line}" for line in lines),
        "    for j in range(part.size):",
        "        sums[j] += part[j]",
    ]
    return ["kept", "dy", "dz", "sums", "part", "rows"], body


_SHAPES = {"sweep": _sweep, "forward": _forward, "backward": _backward}


def _compiled(form: Form) -> Loop:
    """The loop, compiled; kept on disk from one process to the next where there is a place to write."""
    import numba

    space, kept = _module(loop_source(form))
    scalar, prepare = form.dtype.type, space["prepare"]
    vector, matrix = (numba.types.Array(numba.from_dtype(form.dtype), axes, "C") for axes in (1, 2))
    kinds = {
        "sweep": [vector] * form.arrays,
        "forward": [matrix, vector],
        "backward": [matrix, matrix, matrix, vector, vector, numba.intp],
    }[form.kind]
    constants = len(prepare(scalar, *[0.5] * form.scalars))
    # "numpy": a division by zero gives infinity, as NumPy's does, and not an exception, which could not be vectorized
    compiler = numba.njit(
        (*kinds, *[numba.from_dtype(form.dtype)] * constants), nogil=True, error_model="numpy", cache=kept
    )
    run = compiler(space["loop"])

    def loop(arrays: Sequence[Array], numbers: Sequence[float]) -> None:
        run(*arrays, *prepare(scalar, *numbers))

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
