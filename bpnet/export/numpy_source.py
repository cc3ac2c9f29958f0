"""A trained network as one Python file that needs NumPy alone, for people to read."""

import base64
import hashlib
import os
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

import bpnet
from bpnet.disk import checked_path, write_atomically
from bpnet.errors import ExportError
from bpnet.export.models import Exported, exported
from bpnet.export.numpy_table import encoder, program_of
from bpnet.export.record import Program, Value, record
from bpnet.export.recording import leaves_of
from bpnet.export.statements import HELPERS, Statements, comment, helper, one_line, quoted, wrapped

READABLE, ROW = 64, 112
"""Arrays of so many numbers, and of so many characters a row, are written as numbers, larger ones in base 64."""

ANSWER = "answer."
"""What begins the names of arrays that no layer has."""


def to_numpy_source(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a trained network to one readable Python file that needs NumPy alone.

        bp.files.to_numpy_source(trainer, "model.py")

        from model import predict
        predict(x)               # what trainer.predict(x) gives

    The file has a line or two of NumPy for each layer, and the weights, which are literals: numbers where there are
    few, text in base 64 where there are many, and a SHA-256 that is checked when the file is imported.  Numbers are
    computed in the type of the parameters.  Where the loss makes probabilities of outputs there is `predict_proba`.  Of
    a table's model, or an estimator, `predict` takes its columns and gives labels or quantities, and the file is a
    program: `python model.py < rows.csv`.

    Raises ExportError where a layer does what NumPy can't, or a date is read in a time zone, NotBuiltError without
    parameters, and PathError where nothing can be written.
    """
    path, found = checked_path(path), exported(model)
    text = source_of(found)
    with write_atomically(path) as file:
        file.write(text.encode())


def source_of(model: Exported) -> str:
    """The text of the file; raises ExportError."""
    program = model.program()
    parts = _Parts(model, program)
    text = parts.text()
    _check(text, model, program)
    return text


class _Parts:
    """What the file is put together from."""

    def __init__(self, model: Exported, program: Program) -> None:
        self.model, self.program = model, program
        self.layout, self.table = model.trainer.layout, model.table
        self.helpers: set[str] = set()
        self.labels = ""

    def text(self) -> str:
        network = "outputs" if self.table else "predict"
        functions, probable = [self.network(network)], self.answers and "probabilities" in self.answers.outputs
        if self.table is not None:
            encoding = encoder(self.table.schema, self.layout.in_shape)
            answer = "prediction" if self.table.target.kind == "number" else "label"
            functions = [self.after("predict", "table", answer), *functions, encoding]
        if probable:
            functions.insert(1, self.after("predict_proba", "table" if self.table else "x", "probabilities"))
        wanted = [name for name in HELPERS if name in self.helpers]
        parts = [
            *functions,
            *map(helper, wanted),
            weights(self.used, self.labels),
            program_of(self.table, self.layout),
        ]
        return "\n\n".join(part.rstrip() + "\n" for part in (self.head(network), *parts) if part)

    @property
    def used(self) -> dict[str, Any]:
        """The arrays in the order in which they are read."""
        arrays = self.program.arrays
        read = [
            leaf.name
            for op in self.program.operations
            for leaf in leaves_of((op.args, dict(op.options)))
            if isinstance(leaf, Value) and leaf.name in arrays
        ]
        more = {} if self.answers is None else {ANSWER + name: a for name, a in self.answers.arrays.items()}
        return {name: arrays[name] for name in dict.fromkeys(read)} | more

    def head(self, network: str) -> str:
        layers = [f"    {comment(self.layout.network, path)}" for path in _paths(self.layout.network)]
        what = "Trained on a table:" if self.table else "A trained network:"
        said = f"`{network}(x)` gives its outputs, {_shape(self.layout.out_shape)}, and W at the end has its weights."
        if self.table is not None:
            said = (
                "`predict(table)` takes columns by name, a dict or a DataFrame, or rows in their order:\n\n"
                + "\n".join(f"    {one_line(f'{f.name}: {f.kind}')}" for f in self.table.schema.features)
            )
        lines = [f"{what} it needs NumPy alone.  Written by bpnet {bpnet.__version__}.", "", *layers, "", said]
        text = documentation("\n".join(lines))
        imports = ["hashlib"] + ["base64"] * any(_as_text(a) for a in self.used.values())
        dates = self.table is not None and any(f.kind == "date" for f in self.table.schema.features)
        lines = [*(f"import {n}" for n in sorted(imports)), *["from datetime import datetime, timezone"] * dates]
        return f'"""{text}\n"""\n\n' + "\n".join([*lines, "", "import numpy as np", ""])

    def network(self, name: str) -> str:
        """The function of the network's outputs."""
        takes, shape, accepts = self.layout.network.takes, self.layout.in_shape, self.layout.network.accepts_nan
        several = isinstance(takes, tuple)
        kinds = list(takes) if isinstance(takes, tuple) else [("x", takes)]
        in_order = several and [n for n, _ in kinds] == [str(i) for i in range(len(kinds))]
        rows = dict(shape) if several else {"x": shape}
        inputs: dict[str, str] = {}
        lines, said = [], []
        for i, (value, (key, codes)) in enumerate(zip(self.program.inputs, kinds, strict=True)):
            missing = accepts[i] if isinstance(accepts, tuple) else accepts
            inputs[value.name] = variable = f"x_{i}" if several else "x"
            given = f"x[{i}]" if in_order else f"x[{quoted(key)}]" if several else "x"
            check = "numbers" if codes is None else "codes"
            options = f", np.{value.dtype}" + ", missing=True" * missing if codes is None else ""
            options += f", below={codes}" if codes is not None and not missing else ""
            lines.append(f"{variable} = {check}({given}, {tuple(rows[key])!r}{options})")
            said.append(f"{given} of {_shape(rows[key])}")
            self.helpers.add(check)
        body = Statements(self.program, self.layout.network)
        (result,) = body.written(inputs).values()
        self.helpers |= body.helpers
        if body.reads_rows:
            lines.append(f"rows = len({next(iter(inputs.values()))})")
        what = one_line(f"The outputs of the network, {_shape(self.layout.out_shape)}, for {', '.join(said)}.", 112)
        return function(name, "x", what, [*lines, *body.lines, "", f"return {result}"])

    @cached_property
    def answers(self) -> Program | None:
        """What is made of the network's outputs z: see `Exported.answers`; None where that is nothing."""
        if self.table is None and not self.model.gives_probabilities:
            return None
        shape, dtype = self.layout.out_shape, next(iter(self.program.outputs.values())).dtype

        def example(rows: int) -> Any:
            return np.random.default_rng(rows).standard_normal((rows, *shape)).astype(dtype)

        return record(lambda backend, values, z: self.model.answers(backend, z), {}, {}, {"z": example})

    def after(self, name: str, argument: str, answer: str) -> str:
        """The function of an answer."""
        assert self.answers is not None
        value = self.answers.outputs[answer]
        body = Statements(replace(self.answers, outputs={answer: value}), None, ANSWER)
        (result,) = body.written({"z": "z"}).values()
        self.helpers |= body.helpers
        what = {"label": "Labels", "prediction": "Quantities", "probabilities": "Probabilities"}[answer]
        classes = self.model.classes
        if classes is not None and self.table is not None:
            what += " of CLASSES" if answer == "label" else " of CLASSES in their order"
            if answer == "label":
                result = f"CLASSES[{result}]"
                labels = wrapped(quoted(c) if isinstance(c, str) else repr(c) for c in classes.tolist())
                kind = ", object" if classes.dtype == np.object_ else ""
                self.labels = f"CLASSES = np.array([\n{labels}\n]{kind})\n"
        lines = ["z = outputs(encode(table))" if self.table else "z = predict(x)"] + ["rows = len(z)"] * body.reads_rows
        lines += [*body.lines, f"return {result}"]
        return function(name, argument, f"{what}, {_shape(value.shape[1:])}.", lines)


def function(name: str, arguments: str, what: str, lines: list[str]) -> str:
    """A function in which overflow and the like are as silent as they are in bpnet."""
    body = textwrap.indent("\n".join(lines), "    ")
    return f'@np.errstate(all="ignore")\ndef {name}({arguments}):\n    """{documentation(what)}"""\n{body}\n'


def documentation(text: str) -> str:
    """A text as it stands in a docstring."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def _shape(shape: Any) -> str:
    return f"(rows{''.join(f', {n}' for n in shape)})" if shape else "(rows,)"


def _paths(layer: Any, path: str = "") -> list[str]:
    """Of every layer that has none in it."""
    children = getattr(layer, "children", ())
    return [p for n, child in children for p in _paths(child, f"{path}.{n}".lstrip("."))] or [path]


# ---- weights --------------------------------------------------------------------------------------------------------


def weights(arrays: Mapping[str, Any], before: str = "") -> str:
    """The dict W of all arrays, and what checks it; another constant may come before it."""
    entries = [f"    {quoted(name)}: {literal(array)},\n" for name, array in arrays.items()]
    digest = hashlib.sha256(b"".join(_stored(array).tobytes() for array in arrays.values())).hexdigest()
    decode = DECODE if any(map(_as_text, arrays.values())) else ""
    return f"{decode}{before}W = {{\n{''.join(entries)}}}\n{VERIFY.format(digest=digest)}"


DECODE = '''\
def array(dtype, shape, text):
    """An array from its bytes in base 64."""
    return np.frombuffer(base64.b64decode(text), "<" + dtype).astype(dtype).reshape(shape)


'''
VERIFY = """
STORED = b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in W.values())
if hashlib.sha256(STORED).hexdigest() != "{digest}":
    raise ValueError("the weights are not those that were written here")
"""


def _stored(array: Any) -> Any:
    """With the bytes of each number in the order in which they are in the file."""
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))


def _as_text(array: Any) -> bool:
    """Whether it is written in base 64, and not as numbers."""
    plain = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    if not plain or array.size > READABLE or array.ndim > 2:
        return not _filled(array)
    return array.ndim == 2 and max(len(_row(row)) for row in array) > ROW


def _filled(array: Any) -> str:
    """The function that makes an array of which all numbers are 0 or 1, else nothing."""
    for name, value in (("zeros", 0), ("ones", 1)):
        if array.size and _stored(array).tobytes() == _stored(np.full_like(array, value)).tobytes():
            return name
    return ""


def literal(array: Any) -> str:
    """An array as what Python reads: numbers, or bytes in base 64."""
    kind = array.dtype.str[1:]
    if filled := _filled(array):
        shape = array.shape[0] if array.ndim == 1 else array.shape
        return f'np.{filled}({shape!r}, "{kind}")'
    if _as_text(array):
        text = base64.b64encode(_stored(array).tobytes()).decode()
        lines = "\n".join(text[i : i + 92] for i in range(0, len(text), 92))
        return f'array("{kind}", {array.shape!r}, """\n{lines}\n""")'
    if array.ndim == 2:
        return "np.array([\n" + "".join(f"        {_row(row)},\n" for row in array) + f'    ], "{kind}")'
    text = _row(array) if array.ndim else str(array.item())
    if len(text) > ROW - 32:  # beside the name
        text = f"[\n{wrapped(map(str, array), ' ' * 8)}\n    ]"
    return f'np.array({text}, "{kind}")'


def _row(array: Any) -> str:
    """Numbers, each as short as it can be and still be that number."""
    return f"[{', '.join(map(str, array))}]"


def _check(text: str, model: Exported, program: Program) -> None:
    """Raise ExportError where the file does not say what the program does, for some rows."""
    names: dict[str, Any] = {"__name__": "model"}
    exec(compile(text, "model.py", "exec"), names)
    inputs, takes = model.examples(program, 5), model.trainer.layout.network.takes
    if not isinstance(takes, tuple):
        given: Any = inputs[0]
    else:
        given = dict(zip([name for name, _ in takes], inputs, strict=True))
        given = tuple(inputs) if list(given) == [str(i) for i in range(len(given))] else given
    found = names["outputs" if model.table else "predict"](given)
    (expected,) = program(*inputs).values()
    if found.dtype != expected.dtype or not np.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ExportError("the file does not give what the network does, which is a fault of bpnet: please report it")
