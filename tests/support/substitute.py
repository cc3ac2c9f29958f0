"""Real CuPy and real nvmath on a machine without a device: `install()` before either is imported.

CUDA's libraries are replaced by `device.cpp`, for which the host is the device.  Kernels are compiled for the host
where CuPy would give them to NVRTC, CuPy's own and bpnet's alike; products are plain loops.  So numbers, launches,
graphs and the rules of capture can be tested; time, and what the real libraries support, can't.

x86-64 Linux, with g++ and nm.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEADERS = ("kernel.hpp", "threads.hpp")
KERNELS = ["g++", "-std=c++17", "-O0", "-ffp-contract=off", "-w", "-fPIC"]
LIBRARY = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC"]
JUMP = b"\x48\xb8%b\xff\xe0"
"""mov rax, target; jmp rax"""


@functools.cache  # what is installed is found afterwards
def missing() -> str:
    """Why it can't be installed; empty if it can."""
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        return "its substitute is for x86-64 Linux"
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            return f"its substitute needs {tool}"
    try:
        version("cupy-cuda13x")
    except PackageNotFoundError:
        return "its substitute is for cupy-cuda13x"
    if "cudaMalloc" not in _symbols(_runtime(), "tT", "cuda"):
        return "CuPy's runtime has no names of its functions"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    return "there is a driver"


def install() -> None:
    """Replace CUDA's libraries for this process; what is built is kept for those that it starts."""
    folder = Path(os.environ.get("BPNET_SUBSTITUTE") or tempfile.mkdtemp(prefix="bpnet-device-"))
    if "BPNET_SUBSTITUTE" not in os.environ:
        os.environ["BPNET_SUBSTITUTE"] = str(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault("CUPY_ACCELERATORS", "")
    os.environ["CUPY_CACHE_DIR"] = str(folder)  # not the user's: images are names of files here
    loaded = "cupy" in sys.modules  # as by a plugin of pytest: then CuPy has read these variables
    blas = next(_runtime().parents[1].glob("libs/cublas*.so"))
    libraries = _build(folder, _symbols(blas, "U", "cublas"))
    device, *_ = (ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in libraries)
    from cupy.cuda import compiler

    for path in (_runtime(), Path(find_spec("cupy.cuda.cub").origin)):  # type: ignore[union-attr,arg-type]
        _redirect(path, device)
    compiler._NVRTCProgram = functools.partial(_Program, folder)
    compiler._get_arch, compiler._get_nvrtc_version = (lambda: "90"), (lambda: (13, 0))
    import cupy

    if loaded:
        cupy._core.set_reduction_accelerators([])
        cupy._core.set_routine_accelerators([])
        if hasattr(compiler, "_kernel_cache_backend"):
            compiler._set_kernel_cache_backend(type(compiler._kernel_cache_backend)(str(folder)))
    for name in ("argsort", "sort", "cumsum"):  # of Thrust, and of a kernel that is for warps
        setattr(cupy, name, functools.partial(_on_host, name))


@functools.cache
def install_nccl() -> Any:
    """NCCL for the devices that have been installed, by `nccl.cpp`: what CuPy's and NVIDIA's bindings then find."""
    folder = Path(os.environ["BPNET_SUBSTITUTE"])
    path = folder / "libnccl.so.2"
    if not path.exists():
        build = Path(tempfile.mkdtemp(dir=folder)) / path.name
        source, name = str(HERE / "nccl.cpp"), f"-Wl,-soname,{path.name}"
        subprocess.run([*LIBRARY, name, "-o", str(build), source, f"-L{folder}", "-l:libcuda.so.1"], check=True)
        os.replace(build, path)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _on_host(name: str, x: Any, **options: Any) -> Any:
    import cupy
    import numpy

    return cupy.asarray(getattr(numpy, name)(x.get(), **options))


def counts() -> dict[str, int]:
    """How often each thing has been done since the process began."""
    device = ctypes.CDLL("libcuda.so.1")
    device.sub_counts.restype = ctypes.c_char_p
    return {name: int(n) for name, _, n in (line.rpartition(" ") for line in device.sub_counts().decode().splitlines())}


def _runtime() -> Path:
    """CuPy's module of CUDA's runtime."""
    return Path(find_spec("cupy_backends.cuda.api.runtime").origin)  # type: ignore[union-attr,arg-type]


def _symbols(path: Path, kinds: str, prefix: str) -> dict[str, int]:
    """The names of a library's symbols of certain kinds, in C++ without their arguments, and where they lie."""
    command = ["nm", *(["-D"] if kinds == "U" else []), str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listing.splitlines():
        address, kind, name = line.split() if len(line.split()) == 3 else ("0", *line.split())
        name = re.sub(r"^_Z\d+(\w+?)Pv\w*$|@.*", r"\1", name)
        if kind in kinds and re.fullmatch(f"({prefix})" + r"[A-Z_]\w*", name):
            found[name] = int(address, 16)
    return found


def _build(folder: Path, blas: dict[str, int]) -> list[Path]:
    """The libraries, the device's first; of cuBLAS, what CuPy names and `device.cpp` lacks fails when it is called."""
    names = ["libcuda.so.1", "libcublasLt.so.13", "libcublas.so.13"]
    paths = [folder / name for name in names]
    if paths[-1].exists():
        return paths
    build = Path(tempfile.mkdtemp(dir=folder))
    source = HERE / "device.cpp"
    text = source.read_text()
    made = {
        *re.findall(r"\b(cublas\w+)\(", text),
        *(f"cublas{s}gemm{way}" for s in "SD" for way in ("_v2", "StridedBatched")),
    }
    rest = sorted(blas.keys() - made)
    (build / "rest.cpp").write_text("".join(f'extern "C" int {name}() {{ return 15; }}\n' for name in rest))
    (build / "versions").write_text("libcublas.so.13 { *; };")
    for name in names:
        command = [*LIBRARY, f"-Wl,-soname,{name}", "-o", str(build / name), str(source), "-ldl"]
        if name != names[0]:
            command[-2:] = [str(build / "rest.cpp"), "-Wl,--no-as-needed", f"-L{build}", f"-l:{names[0]}"]
        if "cublas.so" in name:
            command.append(f"-Wl,--version-script={build}/versions")
        subprocess.run(command, check=True)
    for header in HEADERS:
        shutil.copy(HERE / header, build)
    subprocess.run(
        [*KERNELS, f"-I{HERE}/cupy_headers", f"-I{_cupy_headers()}", "-x", "c++-header", str(build / "kernel.hpp")],
        check=True,
    )
    for name in (*HEADERS, "kernel.hpp.gch", *names):
        os.replace(build / name, folder / name)
    return paths


def _redirect(path: Path, device: ctypes.CDLL) -> None:
    """Every function of CUDA's runtime or CUB that is part of a module of CuPy to the device's of the same name."""
    with open("/proc/self/maps") as maps:
        base = min(int(line.partition("-")[0], 16) for line in maps if str(path) in line)
    libc = ctypes.CDLL(None, use_errno=True)
    for name, offset in _symbols(path, "tT", "cuda|cub_device").items():
        function = getattr(device, f"sub_{name}", None)
        if function is not None:
            target = ctypes.cast(function, ctypes.c_void_p).value or 0
            at = base + offset
            if libc.mprotect(ctypes.c_void_p(at & ~4095), ctypes.c_size_t(8192), 7):
                raise OSError(ctypes.get_errno(), "memory of CuPy's runtime can't be written to")
            ctypes.memmove(at, JUMP % target.to_bytes(8, "little"), 12)


def _cupy_headers() -> Path:
    return Path(find_spec("cupy").origin).parent / "_core/include"  # type: ignore[union-attr,arg-type]


class _Program:
    """In the place of CuPy's: a kernel's text compiled for the host."""

    def __init__(self, folder: Path, source: str, *args: Any, **options: Any) -> None:
        self.folder, self.source = folder, source

    def folders(self) -> list[str]:
        """Where headers lie; CuPy's are part of the one that is read already compiled."""
        return [f"-I{folder}" for folder in (self.folder, HERE / "cupy_headers", _cupy_headers())]

    def compile(self, options: tuple[str, ...] = (), log_stream: Any = None) -> tuple[bytes, None]:
        name = hashlib.sha256(self.source.encode()).hexdigest()[:32]
        path = self.folder / f"{name}.so"
        if not path.exists():
            kernels = re.findall(r"__global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\(", self.source)
            ways = "".join(f"\nKERNEL({kernel})" for kernel in kernels)
            build = Path(tempfile.mkdtemp(dir=self.folder))
            (build / "kernel.cpp").write_text(f'#include "kernel.hpp"\n{self.source}{ways}\n')
            command = [*KERNELS, *self.folders(), "-shared", "-o", str(build / "kernel.so"), str(build / "kernel.cpp")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                from cupy.cuda.compiler import CompileException

                raise CompileException(done.stderr[:4000], self.source, str(build), options, "g++")
            os.replace(build / "kernel.so", path)
        return str(path).encode() + b"\0", None
