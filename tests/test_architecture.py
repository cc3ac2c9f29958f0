"""The house of the design, read from the syntax trees: who imports whom, and what the mathematics may use."""

import ast
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

import bpnet as bp
from bpnet import names
from bpnet.registry import own_catalogue

ROOT = Path(bp.__file__).parent
MODULES = {
    "bpnet." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

LIBRARIES = {"numpy", "cupy", "cupyx", "torch", "jax", "array_api_compat", "array_api_strict", "llvmlite", "scipy"}

MATHEMATICS = [
    name
    for name in MODULES
    if name.split(".")[1]
    in (
        "layer",
        "rng",
        "layers",
        "losses",
        "metrics",
        "optimizers",
        "penalties",
        "schedules",
        "layout",
        "backpropagation",
        "step",
    )
]

HOST_NUMPY = {  # functions that may use NumPy, on the host: start values, shuffling, proofs
    "bpnet.backends.base": {"Backend.to_host", "Prefetcher.send"},
    "bpnet.rng": {"Rng.__init__", "Rng.orthogonal", "Rng.full", "Rng.given", "ShapeRng.full"},
    "bpnet.layout": {"Layout.start"},
    "bpnet.data.loader": {"row_order"},
    "bpnet.checking": {"_compared", "_single_steps", "_fit"},
    "bpnet.testing": {"check_gradients", "_compare", "_replacements", "_habits"},
}

HOST_ROOMS = tuple(
    f"bpnet.{room}"
    for room in (
        "files",
        "compiler",
        "backends",
        "cli",
        "tabular",
        "report",
        "estimators",
        "export",
        "weights",
        "plots",
        "data.streams",
        "distributed",
    )
)

# Names of the Array API standard, 2024.12, without its extensions; and what every module has.
STANDARD = frozenset(
    """
    e inf nan newaxis pi
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128
    arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones ones_like tril triu
    zeros zeros_like
    astype broadcast_arrays broadcast_to can_cast finfo iinfo isdtype result_type
    abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_invert bitwise_or
    bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp expm1 floor floor_divide greater
    greater_equal hypot imag isfinite isinf isnan less less_equal log log1p log2 log10 logaddexp logical_and logical_not
    logical_or logical_xor maximum minimum multiply negative nextafter not_equal positive pow real reciprocal remainder
    round sign signbit sin sinh sqrt square subtract tan tanh trunc
    matmul matrix_transpose tensordot vecdot
    broadcast_shapes concat expand_dims flip moveaxis permute_dims repeat reshape roll squeeze stack tile unstack
    searchsorted take take_along_axis argmax argmin count_nonzero nonzero where
    unique_all unique_counts unique_inverse unique_values argsort sort
    cumulative_prod cumulative_sum max mean min prod std sum var all any diff
    __array_namespace_info__ __array_api_version__ __name__
    """.split()  # noqa: SIM905 - a list literal would be a page long
)

RANKS = {  # who may import whom: a module imports only what ranks lower
    "errors": 0,
    "typing": 0,
    "names": 0.5,
    "options": 1,
    "table": 1,
    "disk": 1,
    "compiler": 1.5,
    "registry": 2,
    "backends": 2,
    "rng": 2.5,
    "layer": 3,
    "initializers": 4,
    "slopes": 4,
    "layout": 4,
    "layers": 5,
    "schedules": 2.5,
    "losses": 6,
    "metrics": 6.5,
    "penalties": 6,
    "optimizers": 6,
    "data": 7,
    "protocol": 7,
    "backpropagation": 8,
    "testing": 9,
    "compatibility": 9,
    "step": 9,
    "minimization": 9,
    "collected": 10,
    "divergence": 10,
    "callbacks": 10,
    "locking": 10,
    "distributed": 10.5,
    "files": 11,
    "sparse": 10,
    "engine": 11,
    "trying": 10.5,
    "state": 11.5,
    "signals": 1,
    "saving": 11.3,
    "fitting": 11.5,
    "trainer": 12,
    "unit_variance": 12.3,
    "tabular": 12.5,
    "checking": 13,
    "inspection": 13,
    "loading": 13,
    "learning_rate": 13,
    "estimators": 13.5,
    "plots": 13.2,
    "report": 13.3,
    "export": 13.3,
    "weights": 13.6,
    "cli": 14,
    "__main__": 15,
}


def functions(tree):
    """(qualified name, node) of every node, where the name is that of the function it stands in, or ""."""

    def walk(node, path):
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*path, child.name)
            yield ".".join(path), child
            yield from walk(child, inner)

    return walk(tree, ())


def imported(node):
    """Full names of the modules that an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [node.module or ""]
    return []


def imports(tree):
    """(function, module, only for type checking) of every import."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for where, node in functions(tree):
        for module in imported(node):
            yield where, module, id(node) in typing_only


def test_the_lists_name_what_exists():
    rooms = {name.split(".")[1] for name in MODULES}
    assert rooms == RANKS.keys()
    assert HOST_NUMPY.keys() <= MODULES.keys()
    for module, allowed in HOST_NUMPY.items():
        found = {w.partition(".<")[0] for w, name, _ in imports(TREES[module]) if name == "numpy"}
        assert found == allowed, "an entry that is no longer used, or one that is missing"


# Each rule yields, of the tree of a module, what it looks at, and whether that is as it should be.


def array_libraries(name, tree):
    """No array library outside the seam."""
    for where, module, typing_only in imports(tree):
        library = module.partition(".")[0]
        if library in LIBRARIES and not typing_only:
            fine = library == "numpy" and where in HOST_NUMPY.get(name, ())
            yield f"imports {module} in {where or 'the module'}", fine


def namespaces(name, tree):
    """Every attribute of `xp` is of the standard, and of the backend only what `Backend` offers is asked."""
    offered = {a for a in dir(bp.backends.Backend) if not a.startswith("_")} | {"xp", "name"}
    for where, node in functions(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner == "xp" or owner.endswith(".xp"):
            yield f"{where}: xp.{node.attr}", node.attr in STANDARD
        elif owner == "b" and node.attr in ("shape", "ndim"):  # an array, the second factor of a product
            continue
        elif owner in ("b", "backend") or owner.endswith(".backend"):
            yield f"{where}: {owner}.{node.attr}", node.attr in offered
        elif owner in ("numpy", "np"):
            yield f"{where}: {owner}.{node.attr}", where.startswith(tuple(HOST_NUMPY.get(name, ())))


def names_of_libraries(name, tree):
    """The mathematics names no library, not in a string either, by which it could choose; documentation may."""
    docs = {
        id(node.body[i].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for i in range(len(node.body))
        if isinstance(node.body[i], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield repr(node.value), not set(node.value.lower().split()) & LIBRARIES


def writes(name, tree):
    """JAX refuses `a[i] = v` on arrays; only names that hold lists and dicts, or host vectors, may be written to."""
    allowed = {"grads", "tree", "params", "taken", "vector", "result", "found", "KERNELS", "last", "derived"}
    for where, node in functions(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Subscript):
                yield f"{where}: {ast.unparse(node)}", ast.unparse(target.value).split("[")[0] in allowed


def directions(name, tree):
    """Imports point one way; the face of the package is for those who stand in front of it."""
    room = name.split(".")[1]
    for where, module, typing_only in imports(tree):
        parts = module.split(".")
        if parts[0] != "bpnet" or typing_only:
            continue
        other = parts[1] if len(parts) > 1 else ""
        if other == "":
            yield f"imports bpnet in {where or 'the module'}", RANKS[room] > RANKS["trainer"]
        elif other != room:
            yield f"imports {module}", RANKS[other] < RANKS[room]


UNSAFE = {
    *(f"os.{name}" for name in ("open", "replace", "rename", "unlink", "remove", "mkdir", "makedirs", "truncate")),
    *(f"shutil.{name}" for name in ("move", "copy", "copy2", "copyfile", "copytree", "rmtree")),
    *(f"tempfile.{name}" for name in ("mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory")),
    *("write_text", "write_bytes", "touch", "mkdir", "unlink", "symlink_to", "hardlink_to", "tofile", "FileIO"),
}
"""What makes, changes or removes files; one of several words by its last one alone where it is a method of a path."""
LIBRARIES_WRITE = {"np.save", "np.savez", "numpy.save", "savefig", "write_table"}
"""What other libraries write, into a file that `write_atomically` has opened."""
ON_DISK = {  # functions that may all the same
    "bpnet.disk": None,
    "bpnet.files.folder": {"_locked"},  # the lock of a folder
    "bpnet.compiler.llvm.cache": {"_make", "_make_room"},  # by a folder's descriptor, for its user alone
    "bpnet.cli.train": {"_rescued"},  # a temporary folder, where no other place is left
    "bpnet.__main__": {"open_standard_streams"},  # those that are closed
}


def disk_writes(name, tree):
    """Files are written, made and removed by bpnet.disk alone: whole or not at all, with errors that name them."""
    allowed = ON_DISK.get(name, set())
    sources = {where: ast.unparse(node) for where, node in _definitions(tree)}
    for where, node in functions(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        modes = [a.value for a in (*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode"))
                 if isinstance(a, ast.Constant)]  # fmt: skip
        opens = last == "open" and any(isinstance(m, str) and set(m) & set("wax+") for m in modes)
        if opens or called in UNSAFE or (last in UNSAFE and called != last):
            yield f"{where}: {called}", allowed is None or where.partition(".<")[0] in allowed
        elif called in LIBRARIES_WRITE or last in ("savefig", "write_table"):
            whole = any(into in sources.get(where, "") for into in ("write_atomically(", "BytesIO("))
            yield f"{where}: {called}", whole


def _definitions(tree):
    """(qualified name, node) of every function."""
    for where, node in functions(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{where}.{node.name}".removeprefix("."), node


RULES = {
    array_libraries: [n for n in MODULES if not n.startswith(HOST_ROOMS)],
    namespaces: ["bpnet.backends.base", *MATHEMATICS],
    names_of_libraries: MATHEMATICS,
    writes: ["bpnet.backends.base", *MATHEMATICS],
    directions: list(MODULES),
    disk_writes: list(MODULES),
}
CASES = [
    pytest.param(rule, name, id=f"{rule.__name__}-{name}")
    for rule, names in RULES.items()
    for name in names
    if any(True for _ in rule(name, TREES[name]))  # the others have nothing to look at
]


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_every_module_keeps_to_the_rules(rule, name):
    assert not [what for what, fine in rule(name, TREES[name]) if not fine], rule.__doc__


PLANTED = {
    "import torch": array_libraries,
    "from numpy import sum": array_libraries,
    "def f(x):\n    import cupyx.scipy": array_libraries,
    "def f(run, x): return run.xp.einsum('ij->i', x)": namespaces,
    "def f(xp, x): return xp.cbrt(x)": namespaces,
    "def f(run, x): return run.backend.secret(x)": namespaces,
    "def f(np, x): return np.sum(x)": namespaces,
    "def f(b): return b.name == 'jax'": names_of_libraries,
    "def f(x): x[0] = 1.0": writes,
    "def f(x, dx):\n    dx[...] += x": writes,
    "from bpnet.trainer import Trainer": directions,
    "def f():\n    import bpnet": directions,
    "def f(path):\n    with open(path, 'w') as file: pass": disk_writes,
    "def f(path): path.write_text('x')": disk_writes,
    "def f(path): os.unlink(path)": disk_writes,
    "def f(path): figure.savefig(path)": disk_writes,
    "def f(path): parquet.write_table(table, path)": disk_writes,
}


@pytest.mark.parametrize("source", PLANTED)
def test_what_breaks_a_rule_is_found(source):
    rule, tree = PLANTED[source], ast.parse(source)
    assert [fine for _, fine in rule("bpnet.losses", tree)] == [False]
    others = [other for other in RULES if other is not rule]
    assert all(fine for other in others for _, fine in other("bpnet.losses", tree))


def test_the_standard_is_what_the_strict_library_has(library):
    xp = library("strict").module
    missing = {name for name in STANDARD if not name.startswith("__") and not hasattr(xp, name)}
    assert not missing


# ---- the public face ------------------------------------------------------------------------------------------------


def test_import_alone_loads_nothing_heavy():
    code = (
        "import sys, numpy, importlib.metadata; before = set(sys.modules); import bpnet; "
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    heavy = {
        "torch",
        "jax",
        "cupy",
        "llvmlite",
        "typer",
        "rich",
        "pandas",
        "sklearn",
        "matplotlib",
        "scipy",
        "safetensors",
    }
    assert not set(run.stdout.split()) & heavy


def test_training_with_numpy_loads_no_other_library():
    code = (
        "import sys, numpy as np, bpnet as bp; x = np.ones((8, 3)); "
        "bp.Trainer(bp.Sequential(bp.Dense(4, 'gelu'), bp.Dropout(0.1), bp.Dense(2)), 'mse')"
        ".fit(x, x[:, :2], progress=False); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert not set(run.stdout.split()) & {
        "torch",
        "jax",
        "cupy",
        "llvmlite",
        "scipy",
        "typer",
        "rich",
        "pandas",
        "sklearn",
    }


def test_public_names_are_what_a_type_checker_sees():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    declared = {alias.name: node.module for node in block.body for alias in node.names}
    (public,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    assert ast.literal_eval(public) == bp.__all__, "a list of literals marks names as public"
    assert declared.keys() == set(bp.__all__) - {"__version__"}
    assert len(bp.__all__) == len(set(bp.__all__))
    for name, module in declared.items():
        thing = getattr(bp, name)
        assert thing is getattr(sys.modules[module], name)
    assert set(bp.__all__) <= set(dir(bp))


def test_every_name_is_found_before_its_module_is_imported():
    """The tables of `names` are those of the classes, so that a name as a string imports one module."""
    for base in (bp.Layer, bp.Loss, bp.Optimizer, bp.metrics.Metric):
        found = {name: cls.__module__ for name, (cls, _) in own_catalogue(base).items() if name[0].islower()}
        listed = {name: module for module, some in names.STRINGS[base.kind].items() for name in some.split()}
        assert listed == found
    assert sorted(names.STRINGS) == ["layer", "loss", "metric", "optimizer"]
    for package in (bp.metrics, bp.files, bp.distributed):
        public = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
        declared = {a.name: n.module for n in ast.walk(public) if isinstance(n, ast.ImportFrom) for a in n.names}
        del declared["TYPE_CHECKING"], declared["names"]
        assert declared == names.CLASSES[package.__name__]
        assert declared.keys() == set(package.__all__) <= set(dir(package))
        assert all(callable(getattr(package, name)) for name in declared)


def test_a_name_imports_the_module_that_it_needs_and_no_other():
    code = """
        import sys, bpnet as bp
        bp.Trainer(bp.Sequential(bp.Dense(2, "relu"), bp.Dense(1)), loss="huber", optimizer="sgd")
        print(*(name for name in sys.modules if name.startswith("bpnet.")))
    """
    loaded = subprocess.run([sys.executable, "-c", dedent(code)], check=True, capture_output=True, text=True)
    assert set(loaded.stdout.split()) & {
        "bpnet.layers.activations.rectifiers", "bpnet.layers.gated", "bpnet.losses.regression", "bpnet.losses.binary",
        "bpnet.optimizers.sgd", "bpnet.optimizers.muon", "bpnet.metrics.ranking", "bpnet.callbacks.loggers",
    } == {"bpnet.layers.activations.rectifiers", "bpnet.losses.regression", "bpnet.optimizers.sgd"}  # fmt: skip


def test_what_was_not_used_yet_is_known():
    """A class of a user's own may not take its name, and a monitor knows whether more of it is better."""
    code = """
        import bpnet as bp
        print(bp.EarlyStopping("val_roc_auc").sign)
        try:
            class Tweedie(bp.Loss):
                pass
        except bp.errors.OptionError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", dedent(code)], check=True, capture_output=True, text=True)
    assert "-1.0\nthere is a loss called Tweedie already, in bpnet.losses.likelihood" in said.stdout


def test_a_users_name_stands_for_the_users_class_whatever_is_imported_later():
    code = """
        from dataclasses import dataclass
        import bpnet as bp

        @dataclass(frozen=True)
        class Mine(bp.Activation):
            names = {"relu": {}}

            def value(self, b, z):
                return 2.0 * z

            def derivative(self, b, z, y):
                return 0.0 * z + 2.0

        print(bp.Dense(2, "relu").function, bp.ReLU(), bp.Dense(2, "relu").function)
    """
    said = subprocess.run([sys.executable, "-c", dedent(code)], check=True, capture_output=True, text=True)
    assert said.stdout == "Mine() ReLU() Mine()\n"


def test_threads_may_import_what_they_need_at_the_same_time():
    """None waits for another that waits for it, nor finds half of a module, also where one misspells a name."""
    code = """
        import faulthandler, threading
        faulthandler.dump_traceback_later(60, exit=True)
        import bpnet as bp
        from bpnet.errors import UnknownNameError

        begin, ended = threading.Barrier(12), []

        def work(number):
            begin.wait()
            for _ in range(3):
                for name in bp.__all__[number::12]:
                    getattr(bp, name)
                for name in ("prelu", "mish", "tanh", "relu"):
                    bp.Dense(3, name)
                try:
                    bp.Dense(3, "rellu")
                except UnknownNameError:
                    pass
                bp.Trainer(bp.Dense(2), "huber", "prodigy")
            ended.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(ended))
    """
    said = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert said.stdout == "12\n", said.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Dens'"):
        _ = bp.Dens


def test_every_public_name_says_what_it_is():
    for name in bp.__all__:
        assert getattr(bp, name).__doc__, name


def test_the_version_is_a_version():
    assert [int(part) for part in bp.__version__.split(".")]


def test_layers_losses_and_optimizers_hold_no_arrays():
    for name in bp.__all__:
        thing = getattr(bp, name)
        if isinstance(thing, type) and issubclass(thing, bp.Layer | bp.Loss | bp.Optimizer | bp.Schedule):
            assert not any(isinstance(v, np.ndarray) for v in vars(thing).values())
            bases = bp.Layer, bp.Composite, bp.Activation, bp.Loss, bp.Optimizer, bp.Schedule
            if thing not in (*bases, bp.ElementwiseLoss, bp.ElementwiseOptimizer):
                assert thing.__dataclass_params__.frozen, name


def test_what_is_private_is_not_listed():
    """By tab completion, for instance."""
    assert set(bp.__all__) <= set(dir(bp))
    assert {name for name in dir(bp) if not name.startswith("__")} <= set(bp.__all__)
