"""A trained model as a C header and an object file, by bpnet's own compiler."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from bpnet.backends.numpy import can_compile
from bpnet.disk import checked_path, make_folder, write_atomically
from bpnet.errors import MissingExtraError, OptionError, shown
from bpnet.export.models import exported
from bpnet.options import choice, whole


def to_c(
    model: Any,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    cpu: str = "native",
    block: int = 256,
) -> tuple[Path, Path]:
    """Write a trained model as `path`.h and `path`.o (.obj on Windows), for programs without Python; gives both paths.

        bp.files.to_c(trainer, "digits")  # digits.h, digits.o

        #include "digits.h"  /* cc program.c digits.o */
        float x[3 * DIGITS_INPUTS], y[3 * DIGITS_OUTPUTS];
        if (digits_predict(x, 3, y) != DIGITS_OK) ...

    The object is for this system's linker: C, C++, Rust, Go and Fortran call its functions, which are

        int <name>_predict(const float *x, int64_t rows, float *y)

    for what `predict` gives, in the rows of y, of a classifier the outputs of the network; of classifiers also
    `<name>_predict_proba` and `<name>_predict_class`; and each again with `_in` at the end and one argument more, the
    memory to work in, for callers who allocate none.  The header says what each takes and returns, with the number of
    inputs and outputs, the names of the classes, and of tables the columns.  Weights and all that a network does with
    rows are in the object, with the scaling of numbers by `NumericInput` or `Standardize`.  Not in it: what happens to
    a table before the network, for which the header has functions (codes of categories, numbers with an origin), or
    says what is to be done (parts of dates).

    Functions may be called by any number of threads at once: each call works in memory of its own, on the thread that
    calls.  They do `block` rows at a time, so that memory does not grow with rows, and a result does not depend on the
    other rows or on their number: with cpu="native" it has the bits of `Trainer.predict` of a trainer with
    `compile=True` on NumPy arrays, where products are computed in the type of the parameters.

    Parameters
    ----------
    model : a Trainer, a TableModel, a fitted estimator, or the path of a file that one of them was saved in
    path : of both files, without their ending; folders in it are made
    name : with which all names begin in C, in capitals those of constants; None takes the end of `path`
    cpu : "native" is for processors that have all vector instructions of this one, and the fastest.  With x86-64, so
        are "x86-64-v4" (AVX-512), "x86-64-v3" (AVX2: Intel since Haswell, 2013, AMD since Excavator, 2015),
        "x86-64-v2" (SSE4.2) and "x86-64" for those of these levels; "generic" is the least of any system.  On a
        processor that has less, functions return <NAME>_NO_PROCESSOR, on x86-64; others don't tell a program what they
        have, so code for "native" ends it there
    block : rows that are computed at a time, at most

    Raises ExportError, which names the layer and what it does, where something can't be compiled or a row's outputs
    depend on other rows, and where weights are over 2 GiB; MissingExtraError without llvmlite (the extra `jit`);
    ArgumentError, OptionError or PathError on unfit arguments; NotBuiltError or DivergedError for a model that can't
    predict.
    """
    if not can_compile():
        raise MissingExtraError("to_c", "llvmlite", "jit")
    from bpnet.compiler.llvm import processor
    from bpnet.export.c_model import CompiledModel

    stem = re.sub(r"\.(h|o|obj)$", "", checked_path(path))
    block = whole("block", block, 1, 2**16)
    name, target = _name(name, stem), processor.named(choice("cpu", cpu, processor.choices()))
    with processor.compiling_for(target):
        made = CompiledModel(exported(model), name, target, block)
    folder, _ = os.path.split(stem)
    make_folder(folder)
    paths = Path(f"{stem}.h"), Path(f"{stem}.obj" if sys.platform == "win32" else f"{stem}.o")
    for file, content in zip(reversed(paths), (made.code, made.header.encode()), strict=True):
        with write_atomically(file) as out:
            out.write(content)
    return paths


def _name(name: str | None, stem: str) -> str:
    given = re.sub(r"\W", "_", os.path.basename(stem), flags=re.ASCII) if name is None else name
    if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", given):
        raise OptionError(f"name is {shown(given)}; expected a name of C, a letter followed by letters, digits and _")
    return given
