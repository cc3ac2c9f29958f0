"""A power cut at any moment of a writing leaves the old file or the new one; once it has returned, the new one.

What reaches the system is logged (support/syscalls.py), and every prefix of it replayed in a model of a disk on which
what was not synced is there or isn't, in every combination (support/power.py).  And on a real ext4, where root may
mount one: what the disk holds at some moments is copied and mounted again.
"""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.power import Disk, restore, state_of
from support.syscalls import AVAILABLE, mark, marked, trace
from support.writers import WRITERS, contents, fit

import bpnet as bp
from bpnet.compiler.llvm import cache

traced = pytest.mark.skipif(not AVAILABLE, reason="calls are traced on Linux on x86-64 alone")
SHOWN = "files, checkpoints, logs, reports, plots, predictions, machine code"


def matters(path):
    return not os.path.basename(path).startswith((".bpnet-", ".lock"))


def replayed(folder, before, calls, rng, limit):
    """(number of the call, the texts that were marked until then, what a power cut after it may leave)."""
    disk, texts = Disk(folder, before), []
    for number, call in enumerate([None, *calls]):
        if call is not None:
            disk.do(call)
            texts += [text] if (text := marked(call)) else []
            if not call.changes and not marked(call):
                continue
        for state in disk.crashed(rng, limit, matters):
            yield number, texts, state


def empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


@traced
@pytest.mark.parametrize("over", [False, True], ids=["anew", "over"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_every_prefix_leaves_a_valid_file(writer, over, soak, tmp_path):
    if writer.missing:
        pytest.skip(f"{writer.missing} is not installed")
    rng, folder = np.random.default_rng(soak.seed), tmp_path / "folder"
    path = folder / writer.target
    empty(folder)
    writer.write(path)  # what is imported and made at first is not to be part of it
    empty(folder)
    if over:
        writer.put_before(path)
    before = state_of(folder)
    done = trace(lambda: (writer.write(path), mark(folder, "ended")), folder)
    assert not done.error, done.error
    old, new, cases, failures, kept = contents(before), contents(state_of(folder)), 0, [], {}
    for number, texts, state in replayed(folder, before, done.calls, rng, soak.count(4096, 64)):
        files, cases = contents(state), cases + 1
        why = writer.wrong(files, old, new, "ended" in texts)
        if steps := [int(text.split()[1]) for text in texts if text.startswith("step")]:
            found = max((int(Path(name).stem.split("-")[1]) for name in files if "step-" in name), default=0)
            why = why or (f"the newest is after step {found} of {steps[-1]}" if found < steps[-1] else None)
            kept.setdefault(tuple(sorted(files.items())), state)
        if why:
            failures.append(f"{writer.name}, after call {number}: {why}")
    soak.record("power loss", cases, failures, SHOWN)
    if kept:
        resumed(list(kept.values()), soak, tmp_path, rng)


def resumed(states, soak, tmp_path, rng):
    """A training goes on from what a power cut leaves, and ends as if there had been none."""
    wanted, failures = fit().theta, []
    chosen = rng.permutation(len(states))[: soak.count(200, 10)]
    for number in chosen:
        empty(tmp_path / "resumed")
        restore(states[number], tmp_path / "resumed")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is passed over as damaged
            found = fit(checkpoint=tmp_path / "resumed" / "run", every=2, keep=2, resume=True).theta
        if not np.array_equal(found, wanted):
            failures.append(f"resumed from {[*states[number]]}: other parameters")
    soak.record("power loss", len(chosen), failures, f"{len(chosen)} trainings resumed from what was left, 0 ulp")


@traced
def test_of_machine_code_all_is_there_or_nothing(soak, tmp_path, monkeypatch):
    rng, folder, left = np.random.default_rng(soak.seed), tmp_path / "above" / "cache", tmp_path / "left"
    folder.parent.mkdir()
    monkeypatch.setenv("BPNET_CACHE_DIR", str(folder))
    name, key, code = f"fused-{0:024x}.o", b"key", bytes(range(256)) * 100
    before = state_of(folder.parent)
    done = trace(lambda: (cache.write(name, key, b"old" * 9000), cache.write(name, key, code)), folder.parent)
    assert not done.error, done.error
    monkeypatch.setenv("BPNET_CACHE_DIR", str(left / "cache"))
    cases, failures, found = 0, [], set()
    for number, _, state in replayed(folder.parent, before, done.calls, rng, soak.count(4096, 512)):
        empty(left)
        restore(state, left)
        if "cache" in state:
            (left / "cache").chmod(0o700)
        read, cases = cache.read(name, key), cases + 1
        found.add(read)
        if read not in (None, b"old" * 9000, code):
            failures.append(f"after call {number} {len(read)} bytes of other code are read")
    assert len(found) == 3
    soak.record("power loss", cases, failures, SHOWN)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and ext4")
def test_on_ext4(soak, tmp_path):
    """What the disk holds at a moment after `save` has returned is a copy of the image: nothing is unmounted before."""

    def run(*command):
        return subprocess.run(command, capture_output=True, text=True)

    image, copy, here, there = (tmp_path / name for name in ("image", "copy", "here", "there"))
    here.mkdir()
    there.mkdir()
    with open(image, "wb") as file:
        file.truncate(2**26)
    run("mkfs.ext4", "-q", str(image))
    mounted = run("mount", "-o", "loop", str(image), str(here))
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    failures = []
    try:
        cases = soak.count(60, 4)
        for case in range(cases):
            path = here / f"{case // 2}.safetensors"  # each a new file, and then over an old one
            made = bp.Trainer(bp.Dense(300), "mse", seed=case).build(np.zeros((1, 100), "f4"))
            made.save(path)
            run("cp", "--sparse=always", str(image), str(copy))
            run("mount", "-o", "loop", str(copy), str(there))
            try:
                if not np.array_equal(bp.load(there / path.name).theta, made.theta):
                    failures.append(f"{path.name} holds another model")
            except Exception as error:
                failures.append(f"{path.name}: {error}")
            finally:
                run("umount", str(there))
    finally:
        run("umount", str(here))
    soak.record("power loss", cases, failures, f"a real ext4 at {cases} moments")
