"""A model in ONNX: the graph of a program with what comes before and after it, checked."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from bpnet import __version__
from bpnet.errors import ArgumentError, ExportError, OptionError, kind_of
from bpnet.export.models import Exported
from bpnet.export.onnx.axes import operator_for
from bpnet.export.onnx.columns import add_inputs
from bpnet.export.onnx.graph import Graph, Tensor
from bpnet.export.patterns import joined
from bpnet.export.record import Program, Value
from bpnet.export.recording import leaves_of, mapped
from bpnet.layer import Layer

ML = 3
"""The version of the operators for tables that goes with the first of OPSETS."""
LARGEST = 2**31 - 2**20
"""Bytes that one file holds."""


def model_of(given: Exported, dtype: str | None, probabilities: bool, opset: int, metadata: Mapping[str, Any]) -> Any:
    """The model as `to_onnx` says."""
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise OptionError(f"opset is {opset}, but onnx {onnx.__version__} knows versions up to {newest}: upgrade it")
    given = given.as_type(dtype)
    size = sum(a.nbytes for a in (given.parameters | given.buffers).values())
    if size > LARGEST:
        raise ExportError(f"the parameters have {size:,} bytes, but one ONNX file holds {LARGEST:,}")
    trainer, table, g = given.trainer, given.table, Graph()
    if table is None and probabilities and not given.gives_probabilities:
        raise OptionError(f"probabilities=True, but {trainer.loss} gives none: leave it out")
    network = trainer.layout.network
    finish = given.answers if table is not None or probabilities else None
    program = given.program(finish, fold=True, erf=given.dtype == np.float32)
    if table is None:
        x = [g.input(v.name, v.dtype, v.shape) for v in program.inputs]
    else:
        columns = add_inputs(g, table.schema, given.dtype)
        several = len(program.inputs) > 1
        x = [_shaped(g, columns[v.name] if several else next(iter(columns.values())), v) for v in program.inputs]
    found = add_program(g, program, x, network)
    if given.classes is not None and "label" in found:
        found["label"] = _labels(g, found["label"], given.classes)
    for name, tensor in found.items():
        g.output(name, tensor, tensor.shape)
    info = {"loss": repr(trainer.loss)}
    if given.classes is not None:
        info["classes"] = json.dumps(given.classes.tolist())
    if table is not None and table.schema.named:
        info["columns"] = json.dumps(table.schema.names)
    graph = helper.make_graph(g.nodes, "bpnet", g.inputs, g.outputs, g.initializers, doc_string=repr(network))
    domains = [helper.make_opsetid("", opset)]
    if any(node.domain == "ai.onnx.ml" for node in g.nodes):
        domains.append(helper.make_opsetid("ai.onnx.ml", ML))
    model = helper.make_model(
        graph,
        opset_imports=domains,
        ir_version=helper.find_min_ir_version_for(domains),
        producer_name="bpnet",
        producer_version=__version__,
        doc_string=repr(network),
    )
    helper.set_model_props(model, info | _texts({**trainer.metadata, **metadata}))
    return checked(model)


def _shaped(g: Graph, x: Tensor, value: Value) -> Tensor:
    """Columns as an input of the network's program."""
    if x.ndim != len(value.shape):
        x = g.reshape(x, value.shape)
    return Tensor(x.name, x.dtype, value.shape)


def _labels(g: Graph, places: Tensor, classes: Any) -> Tensor:
    """The labels of these places; whole numbers from 0 on are that themselves."""
    if classes.dtype.kind == "i" and classes.tolist() == list(range(len(classes))):
        return places
    labels = g.array(classes, "classes", np.int64 if classes.dtype.kind == "i" else None)
    found = g.node("Gather", labels, places, ndim=places.ndim)
    return Tensor(found.name, found.dtype, places.shape)


def checked(model: Any) -> Any:
    """The model with the shapes of what is between inputs and outputs; raises ExportError where ONNX refuses it."""
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker refuses what was written, which is a fault of bpnet: {error}") from error
    return model


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as ONNX has it, texts by name: other values as JSON."""
    found = {}
    for name, value in metadata.items():
        try:
            found[str(name)] = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError):
            raise ArgumentError(f"metadata[{name!r}] is {kind_of(value)}; expected what JSON can hold") from None
    return found


def add_program(g: Graph, program: Program, inputs: list[Tensor], network: Layer) -> dict[str, Tensor]:
    """The outputs of a program for these inputs."""
    known = {value.name: tensor for value, tensor in zip(program.inputs, inputs, strict=True)}
    arrays = program.arrays
    seen: set[str] = set()

    def operand(leaf: Any) -> Any:
        if not isinstance(leaf, Value):
            return leaf
        if leaf.name not in known:
            known[leaf.name] = g.array(arrays[leaf.name], leaf.name)
        return known[leaf.name]

    # onnxruntime's sigmoid of numbers below -18 is 1.5e-8, which counts where it is a factor beside large numbers
    for op in joined(program, factors=False):
        args, options = mapped(operand, (op.args, dict(op.options)))
        g.place, g.result, start = f"{op.layer}/" if op.layer else "", op.result, len(g.nodes)
        layer = layer_at(network, op.layer)
        where = f"layer {op.layer!r} ({type(layer).__name__}) can't be exported: " if op.layer else ""
        operator = operator_for(op.function)
        if operator is None:
            raise ExportError(f"{where}ONNX has no counterpart of {op.function}")
        try:
            made = operator(g, *args, **options)
        except ExportError as error:
            raise ExportError(f"{where}ONNX has no counterpart of {error}") from None
        except TypeError as error:
            raise ExportError(f"{where}ONNX has no counterpart of {op.function} with these arguments") from error
        for value, tensor in zip(leaves_of(op.result), leaves_of(made), strict=True):
            known[value.name] = g.value(value, tensor)
        if op.layer not in seen and len(g.nodes) > start:
            seen.add(op.layer)
            g.nodes[start].doc_string = shortened(repr(layer))
    g.place = ""
    return {name: operand(value) for name, value in program.outputs.items()}


def layer_at(network: Layer, path: str) -> Layer:
    """The layer of that path."""
    for name in path.split(".") if path else ():
        network = dict(getattr(network, "children", ()))[name]
    return network


def shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
