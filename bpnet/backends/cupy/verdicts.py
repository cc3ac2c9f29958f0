"""Which of bpnet's own techniques may be used on a CUDA device.

The first use of a device in a process checks them on it, in a fraction of a second; what is found is remembered in the
user's cache folder, by device, driver and versions.  What gives wrong values there, or is refused, is switched off, and
something slower does the same.  So a fault of ours costs speed, and no result.
"""

import hashlib
import importlib
import json
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cupy

from bpnet.backends.cupy import cublaslt
from bpnet.backends.techniques import Finding
from bpnet.compiler.llvm import cache as disk
from bpnet.errors import BpnetWarning

log = logging.getLogger("bpnet")

KERNELS = "fused kernels"
CAPTURE = "captured graphs"
STREAMING = "streaming through pinned memory"
CUBLASLT = "products by cuBLASLt"

INSTEAD = {
    KERNELS: "CuPy's own operations, one by one",
    CAPTURE: "every command launched by itself",
    STREAMING: "copies that the device waits for",
    CUBLASLT: "CuPy's products, which can't be captured, and no tf32 or bfloat16",
}
"""What is used in the place of each; of products, see `instead_of`."""

_off: dict[int, dict[str, str]] = {}
"""By the number of a device, once it has been checked: what is switched off there, and why."""
_lock = threading.RLock()
_thread = threading.local()
_changes = 0


def instead_of(technique: str) -> str:
    """What is used where a technique is switched off."""
    if technique in INSTEAD:
        return INSTEAD[technique]
    precision, epilogue = technique.split()[1:3]
    if epilogue != "DEFAULT":
        return "the product, and then a fused kernel"
    return "CuPy's product" if precision in ("float32", "float64") else "an error that names float32"


def usable(technique: str) -> bool:
    """Whether it may be used on the current device."""
    return technique not in off()


def off() -> Mapping[str, str]:
    """What is switched off on the current device, and why; nothing while this thread is checking."""
    return {} if checking() else _off.get(cupy.cuda.runtime.getDevice(), {})


def checking() -> bool:
    """Whether this thread is trying techniques: then none is switched off, and a fault is an error."""
    return getattr(_thread, "checking", False)


def changes() -> int:
    """How often something has been switched off or on after the first use of a device."""
    return _changes


def first_use(number: int) -> None:
    """Check the device of that number, unless that has been done; warn of what has to be switched off."""
    if number in _off or checking():
        return
    with _lock:
        if number not in _off:
            with cupy.cuda.Device(number), everything_on():
                found = _known_or_found()
            _off[number] = found
            tell(number, found)
            if not cublaslt.available() and not cupy.cuda.runtime.is_hip:
                warnings.warn(
                    f"cuBLASLt can't be used ({cublaslt.bindings()}): products go through CuPy one by one, steps are "
                    "not captured as CUDA graphs, and there is no precision='tf32' or 'bfloat16', so training takes "
                    "much longer than it need. pip install 'bpnet-xp[cuda13]' (or [cuda12]) brings what is missing, "
                    "nvmath-python",
                    BpnetWarning,
                    stacklevel=2,
                )


@contextmanager
def everything_on() -> Iterator[None]:
    """While this thread tries techniques, none is switched off for it, and a fault is an error."""
    outer = checking()
    _thread.checking = True
    try:
        yield
    finally:
        _thread.checking = outer


def faults(findings: Iterable[Finding]) -> dict[str, str]:
    """What is to be switched off, and why: what is wrong or refused.

    Of a product of which only some are refused, others stand in for these alone.  Whole steps count where they are
    wrong, and nothing smaller is.
    """
    by_name: dict[str, list[Finding]] = {}
    known = list(findings)
    smaller = any(f.wrong and not f.whole_steps for f in known)
    for finding in known:
        if not finding.whole_steps or (finding.wrong and not smaller):
            by_name.setdefault(finding.name, []).append(finding)
    found = {}
    for name, some in by_name.items():
        bad = [f for f in some if not f.ok]
        if bad and name != CUBLASLT and (name in INSTEAD or len(bad) == len(some) or any(f.wrong for f in bad)):
            found[name] = min(bad, key=lambda f: not f.wrong).why
    return found


def switch_off(findings: Iterable[Finding]) -> None:
    """Use from now on, on the current device, what has been found right, and nothing else, also in other processes."""
    global _changes
    known = list(findings)
    found, number = faults(known), cupy.cuda.runtime.getDevice()
    new = {name: why for name, why in found.items() if name not in _off.get(number, {})}
    _off[number] = found
    _changes += 1
    _remember(known)
    tell(number, new)


def tell(number: int, found: Mapping[str, str]) -> None:
    """Warn of what is switched off."""
    if found:
        listed = "; ".join(f"{name}, {why}: instead {instead_of(name)}" for name, why in found.items())
        warnings.warn(
            f"on {describe(number)} bpnet does without {listed}. What is left gives right results, some of it more "
            "slowly. Please report this, with what `bpnet check` prints",
            BpnetWarning,
            stacklevel=2,
        )


def describe(number: int) -> str:
    """A device and the versions on which a verdict about it depends, in words."""
    name, driver, runtime, own, lt = _identity(number)[1:6]
    ours = importlib.import_module("bpnet").__version__
    return f"cuda:{number} {name} (driver {driver}, CUDA {runtime}, CuPy {own}, cuBLASLt {lt}, bpnet {ours})"


def _known_or_found() -> dict[str, str]:
    """What is to be switched off on the current device."""
    text = disk.read(*_entry())
    if text is not None:
        known: dict[str, str] = json.loads(text)
        return known
    from bpnet.backends.cupy.techniques import quick

    try:
        findings = list(quick())
    except Exception as error:  # as where memory is full: that says nothing about what the device can
        log.warning("the device could not be checked, so nothing is switched off: %s", error)
        return {}
    _remember(findings)
    return faults(findings)


def _remember(findings: Iterable[Finding]) -> None:
    """Keep what is wrong for other processes; not what was refused, which may have passing reasons."""
    known = list(findings)
    if any(f.refused and f.name != CUBLASLT for f in known):
        cublaslt.forget()
    else:
        disk.write(*_entry(), json.dumps(faults(known)).encode())


def _entry() -> tuple[str, bytes]:
    """The name and the key of the file about the current device."""
    key = "\n".join(_identity(cupy.cuda.runtime.getDevice())).encode()
    return f"device-{hashlib.sha256(key).hexdigest()[:24]}.json", key


@cache
def _identity(number: int) -> tuple[str, ...]:
    """All that verdicts about a device depend on, names and versions first but for a number that tells it from all."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(number)
    name, own = properties["name"], properties.get("uuid", b"")
    bindings = cublaslt.bindings()
    lt = "missing" if isinstance(bindings, str) else str(bindings[0].get_version())
    versions = str(runtime.driverGetVersion()), str(runtime.runtimeGetVersion()), cupy.__version__, lt
    package = Path(__file__).parents[2]
    sources = disk.hash_of([*package.glob("compiler/**/*.py"), *package.glob("backends/cupy/*.py")])
    return str(own), name.decode() if isinstance(name, bytes) else str(name), *versions, sources
