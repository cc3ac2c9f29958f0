"""Processors that machine code is for: this one, or a baseline that many have, and how code finds out where it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llvmlite import binding as llvm

V2 = frozenset(["cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"])
V3 = V2 | frozenset(["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"])
V4 = V3 | frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])
LEVELS = {"x86-64": frozenset[str](), "x86-64-v2": V2, "x86-64-v3": V3, "x86-64-v4": V4}
"""The levels of the x86-64 psABI, and what each has that x86-64 has not."""

EAX, EBX, ECX = range(3)
CPUID = {
    (1, 0, ECX): "sse3:0 ssse3:9 fma:12 cx16:13 sse4.1:19 sse4.2:20 movbe:22 popcnt:23 avx:28 f16c:29",
    (7, 0, EBX): "bmi:3 avx2:5 bmi2:8 avx512f:16 avx512dq:17 avx512cd:28 avx512bw:30 avx512vl:31",
    (0x80000001, 0, ECX): "sahf:0 lzcnt:5 prfchw:8",
}
"""Where x86 says that it has what code for products and functions can use: by leaf, subleaf and register of CPUID,
LLVM's names of features and their bits."""
ALWAYS = frozenset(["64bit", "cmov", "cx8", "evex512", "fxsr", "mmx", "sse", "sse2", "x87"])
"""What every x86-64 has, and what LLVM calls AVX-512 in some versions."""


@dataclass(frozen=True)
class Processor:
    """What machine code may count on: LLVM's name of the processor, its features, and the system."""

    triple: str
    name: str
    features: frozenset[str]
    flags: str
    """The features as LLVM is told them: "+avx,-avx2,..."."""

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86", "i386", "i686", "amd64"))

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector register."""
        return 64 if "avx512f" in self.features else 32 if "avx" in self.features else 16

    @property
    def fuses(self) -> bool:
        """Whether it multiplies and adds in one operation."""
        return "fma" in self.features or not self.is_x86

    @property
    def many_registers(self) -> bool:
        """Whether there are 32 vector registers, not 16."""
        named = self.name.startswith(("apple", "neoverse", "cortex"))
        return self.vector_bytes == 64 or named or self.triple.startswith(("aarch64", "arm64"))

    def machine(self, **options: Any) -> Any:
        """A new description for LLVM: a compiler keeps the one that it is given."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.name, features=self.flags, opt=3, **options)

    @property
    def needs(self) -> list[str]:
        """What code for it asks of x86 before it runs, as in CPUID."""
        if not self.is_x86:
            return []
        entries = [entry for text in CPUID.values() for entry in text.split()]
        return [entry for entry in entries if entry.rpartition(":")[0] in self.features]

    @property
    def tested(self) -> dict[tuple[int, int, int], int]:
        """Of x86, by leaf, subleaf and register of CPUID, the bits that must be set."""
        found = {}
        for place, text in CPUID.items():
            bits = (entry.rpartition(":") for entry in text.split())
            found[place] = sum(1 << int(bit) for name, _, bit in bits if name in self.features)
        return {place: mask for place, mask in found.items() if mask}


@lru_cache(maxsize=1)
def host() -> Processor:
    """This one, with all that it has."""
    features = llvm.get_host_cpu_features()
    has = frozenset(name for name, there in features.items() if there)
    return Processor(llvm.get_default_triple(), llvm.get_host_cpu_name(), has, features.flatten())


@lru_cache
def named(name: str) -> Processor:
    """This one, "native", with those features that can be asked for; a level of x86-64; or the least, "generic".

    Raises KeyError where there is no such processor with this architecture.
    """
    this = host()
    if not this.is_x86:
        least = "apple-m1" if "apple" in this.triple else "generic"
        return {"native": this, "generic": Processor(this.triple, least, frozenset(), "")}[name]
    if name == "native":
        known = ALWAYS | {entry.rpartition(":")[0] for text in CPUID.values() for entry in text.split()}
        told = ",".join(f if f[1:] in known else f"-{f[1:]}" for f in this.flags.split(","))
        return Processor(this.triple, this.name, this.features & known, told)
    level = "x86-64" if name == "generic" else name
    return Processor(this.triple, level, LEVELS[level], "")


def choices() -> tuple[str, ...]:
    """The names that `named` knows."""
    return ("native", *LEVELS, "generic") if host().is_x86 else ("native", "generic")


_TARGET: ContextVar[Processor | None] = ContextVar("target", default=None)


def target() -> Processor:
    """The one that machine code is being written for."""
    return _TARGET.get() or host()


@contextmanager
def compiling_for(processor: Processor) -> Iterator[None]:
    """While machine code is written for another processor than this one."""
    token = _TARGET.set(processor)
    try:
        yield
    finally:
        _TARGET.reset(token)
