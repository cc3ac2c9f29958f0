"""The array libraries that the tests run on, behind one fixture: `backend`."""

import atexit
import gc
import importlib
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

# JAX reads these when it is imported: double precision, products as exact as the other libraries' on any processor, and
# programs that are soon compiled, since most run once.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("SCIPY_ARRAY_API", "1")  # without which scikit-learn dispatches to no array library
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one of the processes of a run has compiled serves all
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="bpnet-jax-")
    os.environ |= dict.fromkeys(
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"), "0"
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

import numpy as np
import pytest
from support import substitute
from support.world import world  # noqa: F401 - a fixture

import bpnet as bp
from bpnet.compiler import verify

pytest_plugins = ["support.soak"]

SUBSTITUTED = substitute.missing() == ""
"""Whether CuPy runs on the substitute for a device."""
if SUBSTITUTED:
    substitute.install()
gc.set_threshold(100_000)  # to look through all that JAX and PyTorch hold takes long
verify.STRICT = True  # whatever the tests compile is checked, and no fault of the compiler is passed over

ON_SUBSTITUTE = {
    f"test_{of}.py"
    for of in (
        "activations", "layers", "losses", "metrics", "networks", "optimizers", "penalties", "trainer", "substitute",
        "verdicts",
    )
}  # fmt: skip
MAKERS = {  # the library's module, and its function that makes an array of a NumPy array
    "numpy": ("numpy", "array"),
    "numpy-readonly": ("numpy", "array"),
    "numpy-jit": ("numpy", "array"),
    "strict": ("array_api_strict", "asarray"),
    "strict-device": ("array_api_strict", "asarray"),
    "torch": ("torch", "tensor"),
    "jax": ("jax.numpy", "asarray"),
    "jax-jit": ("jax.numpy", "asarray"),
    "cupy": ("cupy", "asarray"),
}
MEMBERS = [
    pytest.param(name, marks=pytest.mark.gpu) if name == "cupy" else name for name in MAKERS if name != "strict-device"
]


EAGER_JAX = {"test_backends.py", "test_layers.py"}
"""Where that member runs; each other file has JAX compiled."""


SEEN_ON_OTHERS = {
    "test_parameters_that_are_no_numbers_are_told_of",
    "test_a_diverged_trainer_is_usable_again",
    "test_finite_numbers_whose_sum_is_not_are_no_divergence",
    "test_steps_that_diverge_raise_and_go_back",
    "test_outputs_that_overflow_to_nan_name_their_layer",
    "test_divergence_in_the_last_update_is_not_overlooked",
    "test_a_buffer_that_overflows_is_divergence",
    "test_an_optimizers_state_that_overflows_is_divergence",
    "test_steps_never_go_back_beyond_what_the_user_changed",
    "test_a_huge_learning_rate_in_the_middle_of_training",
    "test_infinite_outputs_and_losses_are_results",
    "test_a_step_is_seen_layer_by_layer",
    "test_a_copy_is_of_one_step_though_training_begins_meanwhile",
    "test_accuracy_is_a_count_over_a_count",
}
"""What bpnet does in Python around the steps, the same for every library: JAX, which compiles for seconds for each of
these, runs test_divergence_is_an_error_that_keeps_the_last_finite_parameters and its like."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--networks", metavar="FIRST:STOP", help="random networks of these seeds: see test_networks.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests for a device, the substitute runs those of the mathematics; all of them where they are asked for."""
    if SUBSTITUTED and "gpu" not in config.option.markexpr:
        skip = pytest.mark.skip(reason="on the substitute for a device only by `pytest -m gpu`")
        for item in items:
            if item.get_closest_marker("gpu") and item.path.name not in ON_SUBSTITUTE:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests were skipped for which reason, a line each."""
    reasons = Counter(str(r.longrepr[2]).removeprefix("Skipped: ") for r in terminalreporter.getreports("skipped"))
    if reasons:
        terminalreporter.section("skipped", "-")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:>5}  {reason}")
    properties = [p for report in terminalreporter.getreports("passed") for p in report.user_properties]
    found = [value for name, value in properties if name == "differences"]
    if found:
        terminalreporter.section("derivatives against differences: how many, and the worst relative error", "-")
        for of in sorted({tuple(value[:2]) for value in found}):
            count, worst = zip(*(value[2:] for value in found if tuple(value[:2]) == of), strict=True)
            terminalreporter.line(f"{of[0]:12} {of[1]:16} {sum(count):>6}  {max(worst):.1e}")


@pytest.fixture
def noted(request: pytest.FixtureRequest) -> Callable[..., None]:
    """noted(kind, library, errors): that these derivatives are right to 1e-7, which the summary counts."""

    def note(kind: str, library: str, errors: list[float]) -> None:
        assert max(errors) <= 1e-7, errors
        request.node.user_properties.append(("differences", (kind, library, len(errors), max(errors))))

    return note


def has_device() -> bool:
    """Whether CuPy finds a CUDA device, and no substitute for one."""
    if SUBSTITUTED:
        return False
    try:
        return bool(importlib.import_module("cupy").is_available())
    except ImportError:
        return False


class Library:
    """An array library as the tests see it; `name` is the fixture's parameter, `seam` its bpnet backend."""

    def __init__(self, name: str) -> None:
        module, maker = MAKERS[name]
        try:
            self.module = importlib.import_module(module)
        except ModuleNotFoundError:
            pytest.skip(f"{module.partition('.')[0]} is not installed")
        if name == "cupy" and not self.module.is_available():
            pytest.skip(f"no CUDA device, and {substitute.missing()}")
        self.name = name
        self._make = getattr(self.module, maker)
        if name.startswith("strict"):  # nor what a compiler can't do: shapes that depend on values
            self.module.set_array_api_strict_flags(
                api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False
            )
        if name == "strict-device":  # a second device, which refuses to meet arrays of the first
            self._make = partial(self._make, device=self.module.Device("device1"))
        self.seam: bp.backends.Backend = bp.backends.backend_of(self._make(np.zeros(1)))
        with self.seam.session():  # a device is checked at its first use
            pass
        self.dtypes = {dtype: getattr(self.xp, dtype) for dtype in ("float32", "float64", "int32", "int64", "bool")}

    def __repr__(self) -> str:
        return self.name

    def array(self, values: Any, dtype: Any = None) -> Any:
        """A new array of this library with the values and the type of a NumPy array (or of `dtype`)."""
        made = self._make(np.array(values, dtype=dtype))
        if self.name == "numpy-readonly":
            made.setflags(write=False)
        return made

    def host(self, x: Any) -> Any:
        """The values of `x` as a NumPy array."""
        if self.name == "strict-device":
            x = self.module.asarray(x, device=self.module.Device("CPU_DEVICE"))
        return x.get() if self.name == "cupy" else np.asarray(x).copy()

    def dtype(self, x: Any) -> str:
        """The name of the type of the elements: "float32"."""
        return next(name for name, dtype in self.dtypes.items() if x.dtype == dtype)

    def close(self, actual: Any, expected: Any, rtol: float | None = None) -> None:
        """Assert that an array of this library equals a float64 NumPy array to within what its type can tell.

        The tolerances are relative to the largest entry, so that an entry that cancels to almost 0 may differ.
        """
        single = self.dtype(actual) == "float32"
        rtol = rtol or (1.3e-6 if single else 1e-12)
        largest = float(np.max(np.abs(expected), initial=0.0))
        atol = max(1e-5 if single else 0.0, rtol * largest)
        np.testing.assert_allclose(self.host(actual), expected, rtol=rtol, atol=atol)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments) as the trainer would call it: compiled where the library compiles.

        Arguments and results may be arrays, numbers, None, and dicts and tuples of these, which reach the compiler as
        tuples; `seam` is meanwhile what compiles.
        """
        return self.compiled(function)(*arguments)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What `call` calls, for arguments of one kind again and again."""
        made: list[Any] = []
        given: list[Any] = []

        def seen(seam: bp.backends.Backend, *values: Any) -> Any:
            own, self.seam = self.seam, seam
            try:
                made[:] = [function(*map(_nested, given, values))]
                return _tuples(made[0])
            finally:
                self.seam = own

        compiled = self.seam.compile(seen)

        def call(*arguments: Any) -> Any:
            given[:] = arguments
            with self.seam.session(work=1.0):
                result = compiled(*map(_tuples, arguments))
            return _nested(made[0], result)

        return call

    @property
    def xp(self) -> Any:
        return self.seam.xp


def compiles(monkeypatch: pytest.MonkeyPatch, choice: bool) -> None:
    """Have the functions of NumPy arrays compiled from the first call on, or never, where a trainer leaves it open."""
    monkeypatch.setattr("bpnet.backends.numpy.WORTH_IT", 0.0 if choice else math.inf)


def _tuples(tree: Any) -> Any:
    """A tree of dicts and tuples as one of tuples."""
    tree = tuple(tree.values()) if isinstance(tree, dict) else tree
    return tuple(map(_tuples, tree)) if isinstance(tree, tuple) else tree


def _nested(like: Any, values: Any) -> Any:
    """The reverse: `values` in a tree like that."""
    if isinstance(like, dict):
        return dict(zip(like, map(_nested, like.values(), values), strict=True))
    return tuple(map(_nested, like, values)) if isinstance(like, tuple) else values


@pytest.fixture(params=MEMBERS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Every array library in turn; those that are not installed, or have no device, skip with the reason."""
    library = Library(request.param)
    if library.name == "jax":  # eager: steps are not compiled as a whole; the member "jax-jit" compiles them
        if request.path.name not in EAGER_JAX:
            pytest.skip("eager JAX, which compiles every operation of its own, runs the mathematics alone")
        if request.node.callspec.params.get("dtype") == "float32":
            pytest.skip("float32 on JAX is tested compiled: eager, JAX compiles every operation again for it")
        monkeypatch.setattr(library.seam, "compile", partial(bp.backends.Backend.compile, library.seam))
    if library.name == "jax-jit" and request.node.originalname in SEEN_ON_OTHERS:
        pytest.skip("what is around the steps is the same for every library; on JAX it takes seconds to compile")
    if library.name == "numpy-jit":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
        compiles(monkeypatch, True)
    return library


@pytest.fixture
def library() -> Callable[[str], Library]:
    """Library by the name of a member of `backend`, for a test in which two meet; skips as `backend` does."""
    return Library


@pytest.fixture
def device(library: Callable[[str], Library]) -> Library:
    """CuPy with cuBLASLt, without which nothing is captured."""
    found = library("cupy")
    if why := without_cublaslt():
        pytest.skip(why)
    return found


def without_cublaslt() -> str:
    """Why there is no cuBLASLt, empty if there is; where an NVIDIA device is, it must not be missing."""
    cublaslt = importlib.import_module("bpnet.backends.cupy.cublaslt")
    why = cublaslt.bindings()
    if not isinstance(why, str):
        return ""
    if has_device() and not cublaslt.cupy.cuda.runtime.is_hip:
        pytest.fail(f"there is a CUDA device, but no cuBLASLt ({why}): pip install 'bpnet-xp[cuda13]'")
    return f"no cuBLASLt: {why}"


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was called as it stands in the midst of what is compiled; where nothing is, a warning is an error."""
    found: list[str] = []
    if find_spec("llvmlite") is None:
        return lambda: found
    from bpnet.backends.numpy import compiled
    from bpnet.compiler.commands import Call

    build = compiled.build

    def recorded(*args: Any) -> Any:
        commands = build(*args)
        found.extend(str(command) for command in commands.commands if isinstance(command, Call))
        return commands

    monkeypatch.setattr(compiled, "build", recorded)
    return lambda: found
