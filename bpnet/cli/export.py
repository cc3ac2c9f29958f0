"""bpnet export: a saved model in the format of other programs."""

import io
from pathlib import Path
from typing import Annotated, Any

import bpnet as bp
from bpnet import backends
from bpnet.cli import terminal
from bpnet.cli.completion import choices
from bpnet.cli.terminal import AsJSON, Model, option
from bpnet.disk import write_atomically
from bpnet.errors import OptionError, UnknownNameError, plural

ENDINGS = {".onnx": "onnx", ".pt": "torch", ".pth": "torch", ".py": "numpy", ".h": "c", ".o": "c"}
"""What the ending of a file stands for where nothing else says it."""
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))


def export(
    model: Model,
    to: Annotated[
        str | None,
        option(
            "FORMAT",
            "onnx; torch, a module; numpy, a Python file; c, a header and an object file: by default that of PATH.",
            autocompletion=choices(*FORMATS),
        ),
    ] = None,
    out: Annotated[Path | None, option("PATH", "The file to write; of c PATH.h and PATH.o.", "--out", "-o")] = None,
    as_json: AsJSON = False,
) -> None:
    """Write MODEL for programs without bpnet: ONNX, PyTorch, one Python file with NumPy, or C.

    A model of a table takes its columns and gives labels or numbers; of torch it is the network alone,
    for what model.inputs(table) gives.
    """
    if to is not None and to not in FORMATS:
        raise UnknownNameError("--to", to, FORMATS)
    if out is None:
        ending = next(ending for ending, name in ENDINGS.items() if name == (to or "onnx"))
        raise OptionError(f"--out is missing: expected the file to write, such as --out model{ending}")
    if to is None and out.suffix.lower() not in ENDINGS:
        raise OptionError(f"--out is {out}, whose ending says no format: expected --to {', '.join(FORMATS)}")
    to = to or ENDINGS[out.suffix.lower()]
    if to != "c":  # whose files have other endings
        terminal.check_output("--out", out, MODEL=model)
    found: Any = bp.load(model)
    files, use = WRITERS[to](found, out)
    size = sum(file.stat().st_size for file in files)
    what = " and ".join(map(str, files))
    result = {"format": to, "output": [str(file) for file in files], "bytes": size, "use": use}
    terminal.report(result, as_json, f"{what} written, {plural(size, 'byte')}", f"use it: {use}")


def to_onnx(model: Any, out: Path) -> tuple[list[Path], str]:
    made = bp.files.to_onnx(model, out)
    inputs = ", ".join(f"{value.name!r}: ..." for value in made.graph.input)
    return [out], f"onnxruntime.InferenceSession({str(out)!r}).run(None, {{{inputs}}})"


def to_torch(model: Any, out: Path) -> tuple[list[Path], str]:
    module, place = bp.files.to_torch_module(model), io.BytesIO()
    backends.get("torch").xp.save(module, place)
    with write_atomically(out) as file:
        file.write(place.getvalue())
    inputs = ", ".join(node.name for node in module.graph.nodes if node.op == "placeholder")
    return [out], f"torch.load({str(out)!r}, weights_only=False)({inputs})"


def to_numpy(model: Any, out: Path) -> tuple[list[Path], str]:
    bp.files.to_numpy_source(model, out)
    header = "" if isinstance(model, bp.TableModel) and model.schema.named else ", without a header"
    return [out], f"from {out.stem} import predict; or in a shell, python {out} < rows.csv{header}"


def to_c(model: Any, out: Path) -> tuple[list[Path], str]:
    header, code = bp.files.to_c(model, out)
    return [header, code], f'#include "{header.name}", and link {code.name}; the header describes its functions'


WRITERS = {"onnx": to_onnx, "torch": to_torch, "numpy": to_numpy, "c": to_c}
