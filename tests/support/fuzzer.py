"""Mutations of model files by the hundred thousand, in a process of their own: see `fuzz`.

With atheris installed libFuzzer chooses what is mutated, by the branches of bpnet that a file got to; without it each
mutation is of any file of the corpus.  The mutations are the same: of bytes, of the header, of the description and of
arrays, and most are given the right hash, without which nothing would get beyond it.

    python -c "from support.fuzzer import main; main()" OUT COUNT SEED BUDGET [PLAIN]

writes what came of it to OUT, as JSON.
"""

import copy
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from support.hostile import TESTS, Outcome, forget_peak, load, memory, prepare

LONGEST = 2**16
"""Bytes of a mutated file."""
UNREAD = ("is not a .safetensors file", "but not a bpnet model", "SHA-256", "bpnet (format")
"""What errors say of files whose description is not looked at."""
BATCH = 500
"""Loads from one look at the memory to the next."""

WORDS = [
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e308, 10**9, 2**31 - 1, 2**31, 2**63, 10**30, "", "relu",
    "adam", "cross_entropy", "a", "α", "x" * 300, "\x00", "\ud800", "../x", [], {}, [[]], [0], [1, 2], [10**9, 10**9],
    [4], ["a", "b"], {"": 0}, {"layer": "ReLU"}, {"layer": "Dense", "units": 3}, {"layer": "Dropout", "rate": 0.5},
    {"layer": "Sequential", "layers": []}, {"loss": "MeanSquaredError"}, {"optimizer": "SGD", "lr": 0.1},
    {"schedule": "Cosine", "lr": 0.1, "steps": 9}, {"initializer": "Orthogonal"}, {"penalty": "L2", "strength": 0.1},
    float("nan"), float("inf"),
]  # fmt: skip


def corpus() -> list[bytes]:
    """Sound files of all kinds of models, small ones."""
    import numpy as np

    import bpnet as bp
    from bpnet.layer import Layer
    from bpnet.optimizers.base import Optimizer
    from bpnet.registry import examples
    from support.hostile_files import saved, sound, sound_table

    made = [sound(), sound_table()]
    x = np.zeros((4, 12), "float32")
    layers = list(examples(Layer).values())
    plain = [layer for layer in layers if layer.takes is None]
    for some in (plain[i : i + 6] for i in range(0, len(plain), 6)):
        network = bp.Sequential(*(bp.Sequential(bp.Dense(12), layer, bp.Flatten()) for layer in some), bp.Dense(2))
        made.append(saved(bp.Trainer(network, "mse", "sgd").build(x)))
    for optimizer in examples(Optimizer).values():
        network = bp.Sequential(bp.Dense(3, "tanh"), bp.Dense(3), bp.Dense(2))
        made.append(saved(bp.Trainer(network, "mse", optimizer).build(x)))
    several = bp.Inputs(a=bp.Embedding(5, 2), b=bp.Dense(2))
    rows = {"a": np.zeros(4, "int64"), "b": x}
    made.append(saved(bp.Trainer(bp.Sequential(several, bp.Dense(1)), "mse").build(rows)))
    return [whole for whole in made if len(whole) <= LONGEST]


class Mutator:
    """Changes files, at random; the same seed and files give the same ones."""

    def __init__(self, files: list[bytes]) -> None:
        self.descriptions = []
        for whole in files:
            from support.hostile_files import opened

            self.descriptions.append(opened(whole)[1])

    def mutated(self, whole: bytes, chance: random.Random) -> bytes:
        from support.model_files import sealed

        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            how = chance.choice((self._bytes, self._description, self._description, self._description, self._arrays))
            whole = how(whole, chance)
        return sealed(_blank(whole)) if chance.random() < 0.95 else whole

    def _bytes(self, whole: bytes, chance: random.Random) -> bytes:
        """Bits, bytes and stretches."""
        changed = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 10))):
            if not changed:
                break
            at = chance.randrange(len(changed))
            end = min(len(changed), at + chance.choice((1, 1, 4, 8, 64, 1024)))
            kind = chance.randrange(6)
            if kind == 0:
                changed[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                changed[at] = chance.choice(b'\0\x01\x7f\xff{}[]":,\\0123456789eE-+. \nun')
            elif kind == 2:
                del changed[at:end]
            elif kind == 3:
                changed[at:at] = changed[at:end]
            elif kind == 4:
                other = chance.randrange(len(changed))
                changed[at:end] = changed[other : other + end - at]
            else:
                changed[at:end] = chance.randbytes(end - at)
        return bytes(changed)

    def _description(self, whole: bytes, chance: random.Random) -> bytes:
        """Values of the description."""
        try:
            head, data = _opened(whole)
            description = json.loads(head["__metadata__"]["bpnet"])
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
            return self._bytes(whole, chance)
        for _ in range(chance.choice((1, 1, 2, 3))):
            description = self._changed(description, chance)
        try:
            head["__metadata__"]["bpnet"] = json.dumps(description, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError):
            return whole
        return _closed(head, data)

    def _changed(self, root: Any, chance: random.Random) -> Any:
        places = list(_places(root))
        if not places:
            return chance.choice(WORDS)
        parent, key = chance.choice(places)
        kind, others = chance.randrange(8), chance.choice(self.descriptions)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = copy.deepcopy(chance.choice(WORDS))
        elif kind == 2:  # of this or another file
            there, at = chance.choice(list(_places(chance.choice((root, others)))))
            parent[key] = copy.deepcopy(there[at])
        elif kind == 3 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 4 and isinstance(parent, dict):
            parent[chance.choice([*list(parent), "layer", "units", "", "x"])] = parent.pop(key)
        elif kind == 5:
            around = chance.choice(("list", "Sequential", "Residual", "Shared", "Clip"))
            inner = parent[key]
            parent[key] = {
                "list": [inner],
                "Sequential": {"layer": "Sequential", "layers": [inner, inner]},
                "Residual": {"layer": "Residual", "inner": inner},
                "Shared": {"layer": "Shared", "inner": inner, "name": "a"},
                "Clip": {"optimizer": "Clip", "base": inner, "value": 0.1},
            }[around]
        elif isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = chance.choice((parent[key] + 1, -parent[key], parent[key] * 2, parent[key] * 1e18))
        else:  # what the same key has elsewhere
            same = [there[at] for there, at in _places(others) if at == key]
            parent[key] = copy.deepcopy(chance.choice(same or WORDS))
        return root

    def _arrays(self, whole: bytes, chance: random.Random) -> bytes:
        """Entries of the header, and their bytes."""
        try:
            head, data = _opened(whole)
            names = [name for name, entry in head.items() if name != "__metadata__" and "shape" in entry]
            name, other = chance.choice(names), chance.choice(names)
            entry = head[name]
            kind = chance.randrange(7)
            start, stop = entry["data_offsets"]
            if kind == 0:
                head[name], head[other] = head[other], entry
            elif kind == 1:
                head[chance.choice((name + "x", "optimizer.9", "buffers.x", "", "training.a"))] = head.pop(name)
            elif kind == 2:
                entry["dtype"] = chance.choice(("F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E5M2", "I32", ""))
            elif kind == 3:
                entry["shape"] = chance.choice(
                    (entry["shape"][::-1], [], [1, *entry["shape"]], [-1], [2**40, 0], [stop - start])
                )
            elif kind == 4:
                entry["data_offsets"] = [start + chance.choice((0, 4, -4, 2**40)), stop + chance.choice((0, 4, -8))]
            elif stop > start:
                number = chance.choice(
                    (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0")
                )
                at = start + 4 * chance.randrange((stop - start + 3) // 4)
                data = data[:at] + number[: stop - at] + data[at + len(number[: stop - at]) :]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError):
            return self._bytes(whole, chance)
        return _closed(head, data)


def _opened(whole: bytes) -> tuple[dict[str, Any], bytes]:
    from support.model_files import split

    text, data = split(whole) if len(whole) >= 8 else (b"", b"")
    found: dict[str, Any] = json.loads(text)
    return found, data


def _closed(head: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def _blank(whole: bytes) -> bytes:
    """With zeros in the place of the hash, where there is one."""
    from support.model_files import unsealed

    return unsealed(whole) if b'sha256\\":\\"' in whole else whole


def _places(value: Any) -> Any:
    """(parent, key) of everything within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


class Attack:
    """Loads one file after the other, and keeps what no file may bring about."""

    def __init__(self, out: Path, count: int, seed: int, budget: float) -> None:
        self.out, self.count, self.seed, self.budget = out, count, seed, budget
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.path = os.path.join(self.folder.name, "m")
        self.watch = prepare()
        self.done, self.read, self.slowest, self.most = 0, 0, 0.0, 0
        self.kinds: dict[str, int] = {}
        self.faults: list[str] = []
        self.batch: list[bytes] = []
        self.begin = time.perf_counter()
        forget_peak()
        self.before = memory("VmRSS")

    def once(self, data: bytes) -> bool:
        """Load a file; whether another is to come."""
        faulthandler.dump_traceback_later(60, exit=True)
        self._note(data, self._load(data))
        faulthandler.cancel_dump_traceback_later()
        self.batch.append(data)
        if len(self.batch) >= BATCH:
            self._look_at_memory()
        self.done += 1
        more = self.done < self.count and time.perf_counter() - self.begin < self.budget
        if self.done % 1000 == 0 or not more:
            self.tell()
        return more

    def _load(self, data: bytes) -> Outcome:
        with open(self.path, "wb") as file:
            file.write(data)
        self.watch.seen.clear()
        kind, text, seconds = load(self.watch, self.path)
        if kind == "loaded" and self.done % 10 == 0:
            kind, text = self._again()
        return Outcome(kind, text, seconds, 0, tuple(self.watch.seen))

    def _again(self) -> tuple[str, str]:
        """What was loaded is saved, and what is then loaded is the same."""
        import bpnet as bp

        try:
            model = bp.load(self.path)
            model.save(self.path + "2")
            one, other = (getattr(m, "trainer", m) for m in (model, bp.load(self.path + "2")))
            same = one.theta.tobytes() == other.theta.tobytes() and one.network == other.network
            same &= one.history.epochs == other.history.epochs or any(e != e for e in one.history["loss"])
        except Exception as error:
            return f"{type(error).__name__} when it was saved again", str(error)
        return ("loaded", "") if same else ("another model when it was saved again", "")

    def _note(self, data: bytes, outcome: Outcome) -> None:
        self.kinds[outcome.kind] = self.kinds.get(outcome.kind, 0) + 1
        self.read += not any(words in outcome.text for words in UNREAD)
        self.slowest = max(self.slowest, outcome.seconds)
        for fault in outcome.faults(len(data), refused=False):
            if len(self.faults) < 100:
                place = self.out.with_name(f"{self.out.name}.{len(self.faults)}.safetensors")
                place.write_bytes(data)
                self.faults.append(f"{fault} ({place})")

    def _look_at_memory(self) -> None:
        """Which of the last files took more memory than it may, where together they did."""
        more = memory("VmHWM") - self.before
        if more > 32 * 2**20:
            for data in self.batch:
                forget_peak()
                before = memory("VmRSS")
                outcome = self._load(data)
                outcome.bytes = max(memory("VmHWM") - before, 0)
                self.most = max(self.most, outcome.bytes)
                if any("MiB" in fault for fault in outcome.faults(len(data), refused=False)):
                    self._note(data, outcome)
        self.most = max(self.most, min(more, 32 * 2**20))
        self.batch.clear()
        forget_peak()
        self.before = memory("VmRSS")

    def tell(self) -> None:
        seconds = time.perf_counter() - self.begin
        found = {
            "mutations": self.done, "seconds": seconds, "slowest": self.slowest, "most": self.most,
            "kinds": self.kinds, "read": self.read, "faults": self.faults, "guided": guided(),
        }  # fmt: skip
        self.out.write_text(json.dumps(found), encoding="utf-8")


def guided() -> bool:
    return "atheris" in sys.modules


def main() -> None:
    out, count, seed, budget = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    use = find_spec("atheris") is not None and sys.argv[5:] != ["plain"]
    if use:
        import atheris

        with atheris.instrument_imports(include=["bpnet"], enable_loader_override=False):
            from bpnet.names import define_all

            define_all()
    files = corpus()
    mutator, attack = Mutator(files), Attack(out, count, seed, budget)
    if not use:
        chance = random.Random(seed)
        while attack.once(mutator.mutated(chance.choice(files), chance)):
            pass
        return
    folder = Path(attack.folder.name) / "corpus"
    folder.mkdir()
    for number, whole in enumerate(files):
        (folder / str(number)).write_bytes(whole)

    def one(data: bytes) -> None:
        if not attack.once(data):
            attack.folder.cleanup()
            os._exit(0)

    def custom(data: bytes, limit: int, number: int) -> bytes:
        chance = random.Random(number)  # half of the time of a sound file: those of libFuzzer are broken ever more
        return mutator.mutated(data if chance.random() < 0.5 else chance.choice(files), chance)[:limit]

    options = [f"-seed={seed + 1}", f"-max_len={LONGEST}", "-len_control=0", "-timeout=1200", "-rss_limit_mb=0"]
    atheris.Setup(
        [sys.argv[0], str(folder), *options, "-print_final_stats=0", "-verbosity=0"], one, custom_mutator=custom
    )
    atheris.Fuzz()


def fuzz(folder: Path, count: int, seed: int, budget: float = 1e9, plain: bool = False) -> dict[str, Any]:
    """What came of so many mutations, or those of `budget` seconds; a process that ended early is one of the faults."""
    out = folder / "fuzz.json"
    command = [sys.executable, "-c", "from support.fuzzer import main; main()"]
    arguments = [str(out), str(count), str(seed), str(budget), *["plain"] * plain]
    places = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *arguments], env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=False
    )
    found: dict[str, Any] = (
        json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"mutations": 0, "faults": []}
    )
    if done.returncode:
        found["faults"] = [*found["faults"], f"the process ended with {done.returncode}: {done.stderr[-3000:]}"]
    return found
