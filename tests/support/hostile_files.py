"""Hostile files: each a name and its bytes, made of a sound one; most carry the right hash, so that they get further.

They are after the negative cases and the published flaws of other formats: safetensors (its tests, and the audit of
2023: headers too long, that overlap, with holes, no UTF-8, that overflow; files that are two kinds at once), Keras
(configurations that name modules, functions, files and addresses; Lambda layers; shapes of more than the file holds),
ONNX (external data by paths, sizes that do not fit, graphs that contain themselves), NumPy and PyTorch (pickles).
"""

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import bpnet as bp
from support.model_files import NO_HASH, head, made, sealed, split, text_of

Parts = tuple[dict[str, Any], dict[str, Any]]
"""Arrays and description."""


def sound() -> bytes:
    """A small model with an optimizer's state, a buffer and a history."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 4)).astype("float32")
    network = bp.Sequential(bp.Dense(6, "tanh"), bp.BatchNorm(), bp.Dropout(0.1), bp.Dense(3))
    trainer = bp.Trainer(network, "cross_entropy", bp.Adam(bp.Cosine(0.01, 20)), penalties=[bp.L2(1e-4)])
    trainer.fit(x, x[:, :3].argmax(axis=1), epochs=2, batch_size=8, progress=False)
    return saved(trainer)


def sound_table() -> bytes:
    """A small model of a table with numbers, a category and a date."""
    rng = np.random.default_rng(0)
    table = {
        "city": rng.choice(["a", "b"], 60), "n": rng.normal(size=60),
        "day": rng.choice(["2024-01-01", "2024-03-02", "2023-07-09"], 60),
    }  # fmt: skip
    return saved(bp.train_table(table, rng.choice(["u", "v"], 60), hidden=(4,), epochs=1, progress=False))


def saved(model: Any) -> bytes:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m")
        return (Path(folder) / "m").read_bytes()


def opened(whole: bytes) -> Parts:
    """The arrays and the description of a sound file."""
    from safetensors.numpy import load

    text = json.loads(split(whole)[0])["__metadata__"]["bpnet"]
    description = json.loads(text)
    del description["sha256"]
    return load(whole), description


def nested(inner: str, around: str, times: int) -> str:
    """`inner` within `around`, so many times, where `around` has an @."""
    before, after = around.split("@")
    return before * times + inner + after * times


def of_bytes(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong before any description is read."""
    entries, data = split(whole)
    text = json.loads(entries)["__metadata__"]["bpnet"]
    array = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    def arrays(name: str, entry: Any, data: bytes = bytes(8), **others: Any) -> tuple[str, bytes]:
        meta = {"__metadata__": {"bpnet": text_of({})}}
        return name, sealed(head({**meta, "a": entry, **others}, data))

    yield "empty", b""
    yield "shorter than a length", b"\0" * 7
    yield "a length of 0", b"\0" * 100
    for n in (1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 100_000_001):
        yield f"a header of {n} bytes is announced", struct.pack("<Q", n) + entries + data
    yield "the length counts the byte after", struct.pack("<Q", len(entries) + 1) + entries + data
    yield "the length counts all of the file", struct.pack("<Q", len(entries) + len(data)) + entries + data
    yield "the length, highest byte first", struct.pack(">Q", len(entries)) + entries + data
    yield "no JSON", head(b"{")
    yield "no object", head(b"[1, 2]")
    yield "null", head(b"null")
    yield "an empty object", head(b"{}")
    yield "invalid UTF-8", head(b'{"\xff\xfe": 1}')
    yield "overlong UTF-8", head(b'{"\xc0\xaf": 1}')
    yield "a surrogate", head(b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', bytes(4))
    yield "a byte order mark", head(b"\xef\xbb\xbf" + entries, data)
    yield "zeros after the header", head(entries + b"\0" * 8, data)
    yield "two headers", head(entries + entries, data)
    yield "a comment in the header", head(b"/**/" + entries, data)
    yield "single quotes", head(entries.replace(b'"__metadata__"', b"'__metadata__'"), data)
    yield "a comma too many", head(entries[:-1] + b",}", data)
    yield "texts that are no object", head({"__metadata__": 3})
    yield "a text that is a number", head({"__metadata__": {"bpnet": 3}})
    yield "a text that is a list", head({"__metadata__": {"bpnet": ["a"]}})
    yield "texts twice", head(b'{"__metadata__":{},"__metadata__":{}}')
    yield "no texts", head({"a": array}, bytes(8))
    yield "texts that are null", head({"__metadata__": None, "a": array}, bytes(8))
    yield "another program's texts", head({"__metadata__": {"format": "pt"}, "a": array}, bytes(8))
    yield arrays("an array beyond the end", {**array, "data_offsets": [0, 2**40], "shape": [2**38]})
    yield arrays("a shape bomb", {**array, "shape": [10**12]})
    yield arrays("a shape of 2**64 - 1", {**array, "shape": [2**64 - 1]})
    yield arrays("a shape that overflows", {**array, "shape": [2, 2**63]})
    yield arrays("a size that overflows by the type's", {**array, "shape": [2**62]})
    yield arrays("a shape that overflows, but for a 0", {**array, "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]})
    yield arrays("a negative shape", {**array, "shape": [-2], "data_offsets": [0, -8]})
    yield arrays("a shape of fractions", {**array, "shape": [2.0]})
    yield arrays("a shape of text", {**array, "shape": ["2"]})
    yield arrays("a shape that is a number", {**array, "shape": 2})
    yield arrays("a shape that is null", {**array, "shape": None})
    yield arrays("a shape of 100 axes", {**array, "shape": [1] * 99 + [2]})
    yield arrays("a shape of 10**999", {**array, "shape": [10**999]})
    yield arrays("offsets backwards", {**array, "data_offsets": [8, 0]})
    yield arrays("negative offsets", {**array, "data_offsets": [-8, 0]})
    yield arrays("offsets beyond 64 bits", {**array, "data_offsets": [0, 2**64 + 8]})
    yield arrays("one offset", {**array, "data_offsets": [0]})
    yield arrays("three offsets", {**array, "data_offsets": [0, 8, 8]})
    yield arrays("no offsets", {"dtype": "F32", "shape": [2]})
    yield arrays("no shape", {"dtype": "F32", "data_offsets": [0, 8]})
    yield arrays("no type", {"shape": [2], "data_offsets": [0, 8]})
    yield arrays("an unknown type", {**array, "dtype": "O"})
    yield arrays("a type of Python's", {**array, "dtype": "object"})
    yield arrays("a type that is a list", {**array, "dtype": ["F32"]})
    yield arrays("a type in small letters", {**array, "dtype": "f32"})
    yield arrays("types of 4 bits", {**array, "dtype": "F4", "shape": [3], "data_offsets": [0, 8]})
    yield arrays("the wrong size for the type", {**array, "dtype": "F64"})
    yield arrays("a hole before", {**array, "data_offsets": [8, 16]}, bytes(16))
    yield arrays("a hole between", array, bytes(24), b={**array, "data_offsets": [16, 24]})
    yield arrays("bytes that belong to no array", array, bytes(16))
    yield arrays("two arrays of the same bytes", array, b=array)
    yield arrays(
        "overlapping arrays", {**array, "data_offsets": [0, 8]}, bytes(12), b={**array, "data_offsets": [4, 12]}
    )
    yield arrays("an array that is null", None)
    yield arrays("an array that is a list", [1])
    yield arrays("an array in an array", {**array, "inner": {**array}, "dtype": {"dtype": "F32"}})
    twice = json.dumps({"__metadata__": {"bpnet": text}})[:-1] + f',"a":{json.dumps(array)},"a":{json.dumps(array)}}}'
    yield "an array twice", sealed(head(twice.encode(), bytes(8)))
    yield "a program of the shell", b"#!/bin/sh\necho hello\n" + whole
    yield "a ZIP behind the arrays", whole + b"PK\x05\x06" + bytes(18)
    yield "a pickle", pickle.dumps({"weight": [1.0] * 50})
    yield "a pickle that calls", b"cos\nsystem\n(S'echo hello'\ntR."
    yield "a ZIP", b"PK\x03\x04" + bytes(60)
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(60)
    yield "NumPy's format", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}" + bytes(40)
    yield "ONNX", b"\x08\x08\x12\x07pytorch" + bytes(60)
    yield "a file without its hash", whole.replace(whole[whole.find(b"sha256") + 11 :][:64], NO_HASH.encode(), 1)


EVIL = {
    "a module and a class": {"module": "os", "class_name": "system", "config": {"command": "echo hello"}},
    "a registered name": {"registered_name": "builtins>eval", "class_name": "eval", "config": "1+1"},
    "keras.utils.get_file": {
        "module": "keras.utils", "class_name": "get_file", "config": {"origin": "http://localhost/x", "fname": "x"},
    },
    "a Lambda layer": {"layer": "Lambda", "function": ["4wEAAAAAAAAAAA==", None, None], "safe_mode": False},
    "permission to be unsafe": {
        "layer": "Dense", "units": 3, "safe_mode": False, "enable_unsafe_deserialization": True},
    "a path to a class": {"layer": "os.system", "command": "echo hello"},
    "a module of bpnet": {"layer": "bpnet.cli.train", "units": 3},
    "a hidden class": {"layer": "__class__", "units": 3},
    "the base of all layers": {"layer": "Layer"},
    "a base": {"layer": "Composite"},
    "an activation that is code": {"layer": "Activation", "function": "lambda xp, z: z", "derivative": "print(1)"},
    "a callback": {"callback": "CSVLogger", "path": "/tmp/bpnet-hostile.csv"},
    "a metric": {"metric": "Accuracy"},
    "an option of the class": {"layer": "Dense", "units": 3, "__init__": "print(1)", "names": {"relu": {}}},
    "an option of the machinery": {"layer": "Dense", "units": 3, "forward": {"layer": "ReLU"}},
    "a tag of jsonpickle": {"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, ["echo hello"]]},
    "a tag of YAML": {"!!python/object/apply:os.system": ["echo hello"]},
    "two kinds": {"layer": "Dense", "units": 3, "loss": "MeanSquaredError"},
    "no kind": {"units": 3, "layer": "Dense"},
    "a vocabulary in a file": {"layer": "CategoricalInput", "entries": "/etc/passwd", "width": [1]},
    "an address": {"layer": "Embedding", "entries": "http://localhost/x", "width": 2},
    "an environment's variable": {"layer": "Dense", "units": "$HOME"},
    "a layer of the kind of a loss": {"loss": "CrossEntropy"},
    "a list": [{"layer": "Dense", "units": 3}],
    "text": "relu",
    "nothing": None,
    "a number": 3,
}  # fmt: skip
"""Networks."""


def of_descriptions(whole: bytes, table: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong in a file whose hash is right."""
    tensors, description = opened(whole)

    def described(name: str, **changes: Any) -> tuple[str, bytes]:
        return name, made(tensors, {**description, **changes})

    def text(name: str, text: str) -> tuple[str, bytes]:
        return name, made(tensors, f'{{"format":2,"sha256":"{NO_HASH}",{text}}}')

    def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> tuple[str, bytes]:
        own = dict(tensors)
        change(own)
        return name, made(own, description)

    plain = json.dumps(description)[1:-1].partition(",")[2]
    for name, network in EVIL.items():
        yield described(f"network: {name}", network=network)
        inner = {"layer": "Sequential", "layers": [network, {"layer": "Dense", "units": 3}]}
        yield described(f"within a network: {name}", network=inner)
    for name, value in {"code": "print(1)", "a path": "../../etc/passwd", "NaN": float("nan"), "a list": [0.1]}.items():
        yield described(f"a rate that is {name}", optimizer={"optimizer": "Adam", "lr": value})
        yield described(f"a loss that is {name}", loss=value)
        yield described(f"a seed that is {name}", seed=value)
        yield described(f"an input's shape that is {name}", in_shape=value)
        yield described(f"a history that is {name}", history=value)
    yield text("a description that is cut", plain[:-50])
    yield text("a key twice", plain + ',"seed":0')
    yield text("a key of a layer twice", plain.replace('"units": 6', '"units": 6, "units": 6', 1))
    yield text("the format twice", '"format":2,' + plain)
    yield text("a number of 100,000 digits", plain + ',"own":' + "1" * 100_000)
    yield text("a number of 10**400", plain.replace('"step_count": 6', '"step_count": 1e400', 1))
    yield text("JSON 100,000 deep", plain + ',"own":' + nested("0", "[@]", 100_000))
    yield text("objects 100,000 deep", plain + ',"own":' + nested("0", '{"a":@}', 100_000))
    deep = nested('{"layer":"Dense","units":3}', '{"layer":"Sequential","layers":[@]}', 100_000)
    yield text("Sequential 100,000 deep", f'"network":{deep}')
    residual = nested('{"layer":"Dense","units":4}', '{"layer":"Residual","inner":@}', 400)
    yield text("Residual 400 deep", plain.replace(json.dumps(description["network"]), residual, 1))
    yield text("not JSON", "'a':1")
    yield text("a control character", '"a":"\x01"')
    yield "a description that is a list", made(tensors, "[1,2]")
    yield "a description that is a number", made(tensors, "3")
    yield "a hash in capitals", whole.replace(*(lambda h: (h, h.upper()))(whole[whole.find(b"sha256") + 11 :][:64]), 1)
    for version in ("1", "3", "999999999", "-1", "2.0", '"2"', "1e9", "null", "99999999999999999999"):
        yield f"format {version}", made(tensors, f'{{"format":{version},"sha256":"{NO_HASH}",{plain}}}')

    weight = tensors["parameters.0.weight"]
    for name in ("parameters.0.weight", "buffers.1.mean", "optimizer.0"):
        holey = tensors[name].copy()
        holey.flat[0] = np.nan
        yield changed(f"NaN in {name}", lambda t, name=name, holey=holey: t.update({name: holey}))
        yield changed(f"no {name}", lambda t, name=name: t.pop(name))
        yield changed(f"{name} of float64", lambda t, name=name: t.update({name: t[name].astype("float64")}))
        yield changed(f"{name} of int32", lambda t, name=name: t.update({name: t[name].astype("int32")}))
        yield changed(f"{name} of float16", lambda t, name=name: t.update({name: t[name].astype("float16")}))
        yield changed(f"{name} flat", lambda t, name=name: t.update({name: t[name].reshape(-1)[:, None]}))
        yield changed(f"{name} empty", lambda t, name=name: t.update({name: t[name][:0]}))
    yield changed("a path as a name", lambda t: t.update({"../../../tmp/evil": weight}))
    yield changed("a path from the root", lambda t: t.update({"/etc/passwd": weight}))
    yield changed("a name of code", lambda t: t.update({"parameters.__import__('os').system('id')": weight}))
    yield changed("a name without end", lambda t: t.update({"parameters." + "a" * 100_000: weight}))
    yield changed("a name that commands a terminal", lambda t: t.update({"\x1b]0;evil\x07": weight}))
    yield changed("an empty name", lambda t: t.update({"": weight}))
    yield changed("a name with a zero", lambda t: t.update({"parameters.0.weight\0": weight}))
    yield changed("a weight transposed", lambda t: t.update({"parameters.0.weight": weight.T.copy()}))
    yield changed("a weight too many", lambda t: t.update({"parameters.9.weight": weight}))
    yield changed("no epochs", lambda t: t.pop("history.epoch"))
    yield changed("an epoch too few", lambda t: t.update({"history.loss": t["history.loss"][:1]}))
    yield changed("epochs of truth values", lambda t: t.update({"history.epoch": np.array([True, False])}))
    told = description["history"]
    yield described("2**31 epochs", history={**told, "epochs": 2**31})
    yield described("2**31 epochs of one text", history={"epochs": 2**31 - 1, "columns": {
        "a": {"ranges": [[0, 2**31 - 1]], "values": ["x" * 100]}}})  # fmt: skip
    yield described("epochs backwards", history={**told, "columns": {**told["columns"], "loss": {"ranges": [[2, 0]]}}})
    yield described("-1 epochs", history={**told, "epochs": -1})
    big = 2**31 - 1
    for name, layers in {
        "Dense(10**9)": [{"layer": "Dense", "units": 10**9}] * 2,
        "an Embedding of 2**62": [{"layer": "Embedding", "entries": big, "width": big}],
        "10**9 members": [{"layer": "MemberDense", "members": 10**9, "units": 10**9}],
        "an ensemble of 10**9": [{"layer": "BatchEnsemble", "members": 10**9, "units": 10**6}],
        "10**9 frequencies": [{"layer": "NumericEmbedding", "frequencies": 10**9, "width": 10**9}],
        "a Bilinear of 10**9": [{"layer": "Bilinear", "units": 10**9}],
        "a GLU of 10**9": [{"layer": "SwiGLU", "units": 10**9}],
        "10**9 iterations": [
            {"layer": "SpectralNorm", "inner": {"layer": "Dense", "units": 10**6}, "iterations": 10**9}],
        "10**9 axes": [{"layer": "Reshape", "shape": [1] * 10_000}],
        "quantiles that one column pads": [{"layer": "NumericInput", "quantiles": [list(range(2000)), *[[0]] * 1999]}],
        "bins that one column pads": [{
            "layer": "NumericEmbedding", "form": "piecewise_linear", "bins": [list(range(3000)), *[[0, 1]] * 2999]}],
        "3,000 layers": [{"layer": "Dense", "units": 4}] * 3000,
        "3,000 branches": [{"layer": "Parallel", "branches": [{"layer": "Dense", "units": 1000}] * 3000}],
        "3,000 shared layers": [
            {"layer": "Shared", "inner": {"layer": "Dense", "units": 4}, "name": "a"}] * 3000,
        "3,000 names shared": [
            {"layer": "Shared", "inner": {"layer": "Dense", "units": 4}, "name": str(i)} for i in range(3000)],
        "chunks of 2**40": [{"layer": "MemberScale", "members": 3, "chunks": [2**20] * 1000}],
    }.items():  # fmt: skip
        network = {"layer": "Sequential", "layers": [*layers, {"layer": "Dense", "units": 3}]}
        for rows in ([4], [2000], [3000]):
            yield described(f"{name}, rows of {rows}", network=network, in_shape=rows)
    many = json.dumps({"layer": "Sequential", "layers": [{"layer": "ReLU"}] * 10_000})
    network = json.loads(nested(many, '{"layer":"Sequential","layers":[@]}', 150))
    yield described("10,000 layers, 150 deep", network=network)
    network = {"layer": "Dense", "units": 4}
    for i in range(12):
        network = {"layer": "Shared", "inner": {"layer": "Sequential", "layers": [network, network]}, "name": str(i)}
    yield described("shared twice in what is shared twice ...", network=network)
    yield described("rows of 2**1000", in_shape=[big] * 32)
    yield described("rows of 10,000 axes", in_shape=[1] * 10_000)
    for name, optimizer in {
        "a history of 10**9 steps": {"optimizer": "LBFGS", "lr": 1.0, "history": 10**9},
        "a history of 10**6 steps": {"optimizer": "LBFGS", "lr": 1.0, "history": 10**6},
        "3,000 groups": {"optimizer": "Grouped", "base": {"optimizer": "SGD"}, "groups": [["*", None]] * 3000},
        "3,000 patterns": {
            "optimizer": "Grouped", "base": {"optimizer": "SGD"},
            "groups": [[f"*{i}*a*b*c", None] for i in range(3000)]},
        "a pattern that backtracks": {
            "optimizer": "Grouped", "base": {"optimizer": "SGD"}, "groups": [["*a" * 500 + "*b", None]]},
        "optimizers around each other": json.loads(
            nested('{"optimizer":"SGD"}', '{"optimizer":"Accumulate","base":@,"steps":2}', 100)),
        "10**18 steps": {"optimizer": "Accumulate", "base": {"optimizer": "SGD"}, "steps": 10**18},
        "a schedule without end": {
            "optimizer": "Adam", "lr": {"schedule": "Cosine", "lr": 0.1, "steps": 10**18}, "beta1": 2},
    }.items():  # fmt: skip
        yield described(name, optimizer=optimizer)
    yield described("3,000 penalties", penalties=[{"penalty": "L2", "strength": 0.1}] * 3000, classes=[1] * 3)
    yield described("a penalty that is a layer", penalties=[{"layer": "ReLU"}])
    yield described("10**6 classes", classes=list(range(10**5)))
    yield described("classes of lists", classes=[[1], [2], [3]])
    yield described("a table where there is none", table={"schema": {}, "target": {}, "settings": {}})

    own, entry = opened(table)
    schema = entry["table"]["schema"]
    category, number, date = schema["features"]

    def tabled(name: str, **changes: Any) -> tuple[str, bytes]:
        return f"table: {name}", made(own, {**entry, "table": {**entry["table"], **changes}})

    def columns(name: str, *features: Any, **changes: Any) -> tuple[str, bytes]:
        return tabled(name, schema={**schema, "features": list(features), **changes})

    for zone in (
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        "a/../../b",
        "os",
        "tzdata.zoneinfo.Europe",
        "\0",
        "a" * 10**5,
    ):
        yield columns(f"the time zone {zone[:30]!r}", category, number, {**date, "zone": zone})
    yield columns("a format of dates that backtracks", category, number, {**date, "format": "%Y" * 1000})
    yield columns("values in a file", {**category, "values": "/etc/passwd"}, number, date)
    yield columns("values that are code", {**category, "values": ["a", {"layer": "Dense"}]}, number, date)
    yield columns("10**5 values", {**category, "values": [str(i) for i in range(10**5)]}, number, date)
    yield columns("a unit of 0", category, {**number, "unit": 0}, date)
    yield columns("a unit of NaN", category, {**number, "unit": float("nan")}, date)
    yield columns("an origin of infinity", category, {**number, "origin": float("inf")}, date)
    yield columns("an option that is code", {**category, "code": "print(1)"}, number, date)
    yield columns("no columns")
    yield columns("10**5 columns", *[{**number, "name": str(i)} for i in range(10**4)])
    yield columns("parts of a date that are none", category, number, {**date, "parts": ["aeon"]})
    yield columns("a type of numbers that is code", category, number, date, dtype="object")
    for name, value in {"nothing": None, "text": "x", "a list": [1], "an empty object": {}}.items():
        for part in ("schema", "target", "settings"):
            if (part, value) != ("settings", {}):
                yield tabled(f"{part}: {name}", **{part: value})


def bombs(megabytes: int) -> Iterator[tuple[str, bytes]]:
    """Headers of so many MB at most that would take much more memory once they are read."""
    size = megabytes * 1_000_000 - 1000
    lists = "[" + ",".join(["[]"] * (size // 3)) + "]"
    yield "empty lists", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":{lists}}}')
    objects = "[" + ",".join(["{}"] * (size // 3)) + "]"
    yield "empty objects", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":{objects}}}')
    keys = ",".join(f'"{i}":0' for i in range(size // 15))
    yield "many keys", made({}, f'{{"format":2,"sha256":"{NO_HASH}",{keys}}}')
    numbers = ",".join(["1.5"] * (size // 4))
    yield "many numbers", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":[{numbers}]}}')
    texts = ",".join(['"ab"'] * (size // 7))
    yield "many texts", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":[{texts}]}}')
    long = "x" * size
    yield "one text", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":"{long}"}}')
    escapes = "\\u0001" * (size // 7)
    yield "escapes", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":"{escapes}"}}')
    deep = "[" * (size // 2)
    yield "lists without end", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":{deep}')
    yield "one digit after the other", made({}, f'{{"format":2,"sha256":"{NO_HASH}","a":{"1" * size}}}')
    entry = '{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}'
    many = ",".join(f'"{i}":{entry % (i, i + 1)}' for i in range(size // 64))
    yield "many arrays", head(b"{" + many.encode() + b"}", bytes(size // 64))
    ones = ",".join(["1"] * (size // 2))
    yield "a shape of ones", head(f'{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}'.encode(), b"\0")
    yield "a header of spaces", head(b"{}" + b" " * size)
    yield "a header of brackets", head(b"[" * size)
    yield "a header of objects", head(b'{"a":' * (size // 5))
    yield "zeros", bytes(size)
