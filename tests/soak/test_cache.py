"""The cache of machine code under attack: a training gives the same numbers, and a fault of the cache costs time alone.

Entries are cut, changed, swapped, planted by another user, written to while they are read; the folder is full,
read-only, missing, open to others, of another user; every call that reads or writes it fails.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.power import state_of
from support.syscalls import AVAILABLE, ERRORS, trace

import bpnet as bp
from bpnet.compiler.llvm import cache

NAME, KEY, CODE = f"fused-{0:024x}.o", b"key", bytes(range(256)) * 40
pytestmark = pytest.mark.skipif(not cache.HAS_OWNERS, reason="files have no owners here")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BPNET_CACHE_DIR", str(tmp_path / "cache"))
    cache._warn.cache_clear()
    cache._written.clear()
    yield tmp_path / "cache"
    cache._warn.cache_clear()


@pytest.mark.skipif(not AVAILABLE, reason="calls are traced on Linux on x86-64 alone")
@pytest.mark.parametrize("before", ["nothing", "an entry"])
def test_every_call_fails(before, soak, folder, tmp_path):
    def use():
        cache.write(NAME, KEY, CODE)
        return cache.read(NAME, KEY)

    def begin():
        shutil.rmtree(folder, ignore_errors=True)
        if before == "an entry":
            use()
        cache._written.clear()

    begin()
    calls = trace(use, tmp_path).calls
    cases = [(i, fault) for i, call in enumerate(calls) for fault in (*ERRORS[call.name], "all after it")]
    rng, failures = np.random.default_rng(soak.seed), []
    chosen = sorted(rng.permutation(len(cases))[: soak.count(len(cases), 60)])
    for number, fault in (cases[i] for i in chosen):
        begin()

        def act(count, call, number=number, fault=fault):
            if fault == "all after it":
                return 5 if count >= number else None
            return fault if count == number else None

        done = trace(use, tmp_path, act)
        if done.error or done.signal or done.result not in (None, CODE):
            failures.append(f"call {number} ({calls[number].name}), {fault}: {done.error[-300:]} {done.result!r:.50}")
        elif use() != CODE:
            failures.append(f"call {number} ({calls[number].name}), {fault}: nothing is kept afterwards")
        elif parts := [name for name in os.listdir(folder) if name.endswith(".part")]:
            failures += [f"call {number} ({calls[number].name}), {fault}: {parts} is left"] * (fault != "all after it")
    soak.record("cache", len(chosen), failures, "every call that fails")


def test_every_damage_is_noticed(soak, folder):
    """Cuts at every byte, single bits, and what follows."""
    cache.write(NAME, KEY, CODE)
    path, rng, failures = folder / NAME, np.random.default_rng(soak.seed), []
    whole, cases = path.read_bytes(), soak.count(20_000, 500)
    for case in range(cases):
        kind = case % 4
        data = bytearray(whole)
        if kind == 0:
            data = data[: int(rng.integers(len(data)))]
        elif kind == 1:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data += rng.bytes(int(rng.integers(1, 100)))
        else:
            start = int(rng.integers(len(data) - 64))
            data[start : start + 64] = bytes(64)
        if bytes(data) == whole:
            continue
        path.write_bytes(data)
        if cache.read(NAME, KEY) is not None:
            failures.append(f"kind {kind}, {len(data)} bytes")
    soak.record("cache", cases, failures, "cut, changed, longer, zeros inside")


def test_an_entry_that_changes_while_it_is_read(soak, folder):
    """In place, as no writer of ours does: it is whole, or none."""
    cache.write(NAME, KEY, CODE)
    whole, failures, ended = (folder / NAME).read_bytes(), [], threading.Event()

    def disturb():
        rng = np.random.default_rng(soak.seed)
        while not ended.is_set():
            with open(folder / NAME, "r+b") as file:
                if rng.integers(2):
                    file.truncate(int(rng.integers(len(whole))))
                file.seek(int(rng.integers(len(whole))))
                file.write(rng.bytes(50))
                file.flush()
                file.seek(0)
                file.write(whole)
            if rng.integers(2):
                cache.write(NAME, KEY, CODE)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = [cache.read(NAME, KEY) for _ in range(soak.count(50_000, 1500))]
    finally:
        ended.set()
        thread.join()
    failures += [f"{len(code)} bytes of other code" for code in found if code not in (None, CODE)]
    assert CODE in found
    assert None in found
    soak.record("cache", len(found), failures, "entries changed while they are read")


TRAIN = """
import logging, numpy as np, bpnet as bp
logging.basicConfig(format="warned: %(message)s")
x = np.random.default_rng(0).random((64, 5), "f4")
trainer = bp.Trainer(bp.Sequential(bp.Dense(7, "tanh"), bp.Dense(2)), "mse", seed=1, compile=True)
trainer.fit(x, x[:, :2], epochs=2, progress=False)
print(trainer.theta.tobytes().hex())
"""


def train(**environment):
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    root = str(Path(bp.__file__).parents[1])
    variables = {k: v for k, v in os.environ.items() if k not in ("BPNET_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    variables |= {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"} | environment
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, env=variables)
    return done.returncode, done.stdout, done.stderr


def _nobody(path):
    """It, with all in it, belongs to another user."""
    for each in (path, *path.iterdir()):
        os.chown(each, 65534, 65534)


def _planted(path):
    """Another user's entries, each with a right hash, of code that would end the process."""
    for each in path.iterdir():
        os.chown(each, 65534, 65534)


def _writable(path):
    for each in path.iterdir():
        each.chmod(0o622)


def _linked(path):
    for each in list(path.iterdir()):
        target = path.parent / f"planted-{each.name}"
        each.rename(target)
        each.symlink_to(target)


def _rotated(path):
    files = sorted(path.iterdir())
    codes = [file.read_bytes() for file in files]
    for file, code in zip(files, codes[1:] + codes[:1], strict=True):
        file.write_bytes(code)


def _garbage(path):
    for file in path.iterdir():
        file.write_bytes(os.urandom(5000))


def _pipes(path):
    for file in list(path.iterdir()):
        file.unlink()
        os.mkfifo(file)


def _folders(path):
    for file in list(path.iterdir()):
        file.unlink()
        file.mkdir()


def _moved(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


ATTACKS = {
    "a folder of another user": (_nobody, 1),
    "entries of another user": (_planted, 0),
    "entries that others may write": (_writable, 0),
    "links for entries": (_linked, 0),
    "entries in each other's place": (_rotated, 0),
    "garbage": (_garbage, 0),
    "pipes": (_pipes, 0),
    "folders": (_folders, 0),
    "a link for the folder": (_moved, 1),
    "a folder open to all": (lambda path: path.chmod(0o777), 1),
    "a folder of a group": (lambda path: path.chmod(0o770), 1),
    "a folder that others may read": (lambda path: path.chmod(0o755), 1),
    "a file for the folder": (lambda path: (shutil.rmtree(path), path.write_bytes(b"")), 0),
}


def test_a_training_gives_the_same_whatever_lies_there(soak, tmp_path):
    good, failures, tried = train(BPNET_CACHE_DIR=str(tmp_path / "good")), [], 0
    assert good[0] == 0, good
    names = np.random.default_rng(soak.seed).permutation([*ATTACKS])
    for name in names[: soak.count(len(names), 2)].tolist():
        attack, warned = ATTACKS[name]
        if "user" in name and os.geteuid() != 0:
            continue
        place = tmp_path / name.replace(" ", "-") / "cache"
        shutil.copytree(tmp_path / "good", place)
        place.chmod(0o700)
        attack(place)
        for again in range(2):
            tried += 1
            status, out, err = train(BPNET_CACHE_DIR=str(place))
            if (status, out) != good[:2] or err.count("warned") != warned:
                failures.append(f"{name}, time {again}: status {status}, {err[-300:]}")
    soak.record("cache", tried, failures, "attacks before a training")


def test_a_training_without_a_place_for_it(soak, tmp_path):
    """A home that is missing, a file or relative, names that can't be; a full file system, and a read-only one."""
    good, failures = train(BPNET_CACHE_DIR=str(tmp_path / "good")), []
    (tmp_path / "file").write_bytes(b"")
    places = {
        "no home": {"HOME": "/nonexistent"},
        "a file for a home": {"HOME": str(tmp_path / "file")},
        "a relative home": {"HOME": "home"},
        "proc": {"BPNET_CACHE_DIR": "/proc/cache"},
        "a device": {"BPNET_CACHE_DIR": "/dev/null/cache"},
        "a long name": {"BPNET_CACHE_DIR": "/tmp/" + "long" * 100},
        "a very long path": {"BPNET_CACHE_DIR": "/tmp" + "/long" * 2000},
        "a name of other bytes": {"BPNET_CACHE_DIR": str(tmp_path / "\udcff")},
    }
    mounted = None
    if os.geteuid() == 0:
        small = tmp_path / "small"
        small.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]).returncode == 0:
            mounted = small
            places["a full file system"] = {"BPNET_CACHE_DIR": str(small / "cache")}
    chosen = [*places][: soak.count(99, 1)] + (["a full file system"] if mounted and soak.sample else [])
    try:
        for name in chosen:
            status, out, err = train(**places[name])
            if (status, out) != good[:2]:
                failures.append(f"{name}: status {status}, {err[-300:]}")
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
            status, out, err = train(BPNET_CACHE_DIR=str(mounted / "cache"))
            if (status, out) != good[:2]:
                failures.append(f"read-only: status {status}, {err[-300:]}")
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(mounted)], check=True)
    assert not os.path.exists("/nonexistent")
    soak.record("cache", len(chosen) + (mounted is not None), failures, "homes that are missing, full or read-only")


def test_processes_that_use_it_at_once(soak, tmp_path):
    environment = {"BPNET_CACHE_DIR": str(tmp_path / "cache")}
    count, found, failures = soak.count(12, 2), [], []
    for _ in range(soak.count(5, 1)):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        threads = [threading.Thread(target=lambda: found.append(train(**environment))) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = [path for path in state_of(tmp_path / "cache") if path.endswith(".part")]
        failures += [f"{left} are left"] if left else []
    failures += [told[2] for told in found if told != found[0] or told[0] != 0]
    soak.record("cache", len(found), failures, "processes at once")
