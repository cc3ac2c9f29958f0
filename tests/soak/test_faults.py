"""A disk that fails at any call: a typed error that names the file, the old file intact, nothing left half written.

Each call that a writing makes to its folder fails in turn with each error that it may give (support/syscalls.py), once,
or from there on: as on a full disk, or one that has died.  Besides that real ones where root allows: a full tmpfs,
a file system that becomes read-only, files that can't be changed, a folder that vanishes, several writers at once.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.power import state_of
from support.syscalls import AVAILABLE, ERRORS, mark, marked, trace
from support.writers import WRITERS, Refused, contents

import bpnet as bp

traced = pytest.mark.skipif(not AVAILABLE, reason="calls are traced on Linux on x86-64 alone")
root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root may mount")
FULL, DEAD = "full from here on", "dead from here on"
SPACE = ("open", "write", "mkdir", "rename")
"""Calls that need room; of open only what makes a file."""


def empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def said(error, path):
    """What is wrong with an error of a writing to `path`, None if nothing is."""
    text = str(error)
    if isinstance(error, Refused):
        usage = "Invalid value for" in error.said  # Typer's own, in a box
        fine = error.status == 2 and (usage or error.said.splitlines()[-1].startswith("bpnet: "))
        text = re.sub(r"[\s│]", "", text) if usage else text
    else:
        fine = isinstance(error, bp.errors.PathError | bp.errors.BusyError)
    if not fine:
        return f"{type(error).__name__}, which is not typed: {text[:300]}"
    folder = f"the folder {path.parent} can't be"  # which is what can't be made, or read
    return None if str(path) in text or folder in text else f"it does not name the file: {text[:300]}"


def attempts(writer, folder):
    """What comes of two writings, of which the first is disturbed."""
    path, found = folder / writer.target, []
    for number in range(2):
        wrong, failed = None, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", bp.errors.BpnetWarning)  # of a checkpoint that can't be read
                writer.write(path)
        except BaseException as error:
            failed, wrong = True, said(error, path)
        if number == 0:
            mark(folder, "attempted")
        found.append((failed, wrong, state_of(folder), left_open(folder)))
    return found


def left_open(folder):
    """The files in a folder that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in found if name.startswith(str(folder))]


def disturbed(number, fault):
    """What `trace` asks: the call of that number fails, and for FULL and DEAD those after it in the first writing."""
    over = False

    def act(count, call):
        nonlocal over
        over = over or marked(call) == "attempted"
        if over or count < number:
            return None
        if fault == DEAD:
            return errno.EIO
        if fault == FULL:
            return errno.ENOSPC if call.name in SPACE and (call.name != "open" or call.made) else None
        return fault if count == number else None

    return act


def litter(state):
    return [path for path in state if Path(path).name.startswith(".bpnet-")]


def judged(writer, call, fault, done, before, new):
    """What is wrong after a disturbed writing and an undisturbed one; None if nothing is."""
    if done.error or done.signal:
        return f"signal {done.signal}: {done.error[-500:]}"
    (failed, wrong, state, leaked), (again, why, after, _) = done.result
    left = litter(state)
    return (
        wrong
        or writer.wrong(contents(state), contents(before), new, ended=not failed)
        or (f"{left} is left" if left and call.name != "unlink" and fault != DEAD else None)
        or (f"{leaked} is left open" if leaked else None)
        or (f"writing again fails, {why or 'with a typed error'}" if again else None)
        or writer.wrong(contents(after), contents(before), new, ended=True)
        or (f"{litter(after)} is still left after another writing" if litter(after) else None)
    )


@traced
@pytest.mark.parametrize("over", [False, True], ids=["anew", "over"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_every_call_fails(writer, over, soak, tmp_path):
    if writer.missing:
        pytest.skip(f"{writer.missing} is not installed")
    rng, folder = np.random.default_rng(soak.seed), tmp_path / "folder"
    path = folder / writer.target

    def begin():
        empty(folder)
        if over:
            writer.put_before(path)

    empty(folder)
    writer.write(path)  # what is imported and made at first is not to be part of it
    begin()
    before = state_of(folder)
    calls = trace(lambda: writer.write(path), folder).calls
    new = contents(state_of(folder))
    cases = [(i, fault) for i, call in enumerate(calls) for fault in ERRORS[call.name]]
    cases += [(i, fault) for i, call in enumerate(calls) if call.changes for fault in (FULL, DEAD)]
    chosen = sorted(rng.permutation(len(cases))[: soak.count(len(cases), 3)])
    failures = []
    for number, fault in (cases[i] for i in chosen):
        begin()
        done = trace(lambda: attempts(writer, folder), folder, disturbed(number, fault))
        if why := judged(writer, calls[number], fault, done, before, new):
            name = errno.errorcode.get(fault, fault) if type(fault) is int else fault
            failures.append(f"{writer.name}, call {number} ({calls[number].name}): {name}: {why}")
    soak.record("file system", len(chosen), failures, "files, checkpoints, logs, reports, plots, predictions")


# ---- real ones ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("only root may mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr!r}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path):
    """Take all room that there is."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(number, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(number)


def fails(write, path, *errors):
    """What is wrong with a writing that must fail; None if nothing is."""
    before, others = path.read_bytes() if path.exists() else None, sorted(os.listdir(path.parent))
    try:
        write(path)
    except BaseException as error:
        if why := said(error, path):
            return why
        if getattr(error, "errno", None) not in (None, *errors):
            return f"errno {error.errno}: {error}"
    else:
        return "nothing was raised"
    if (path.read_bytes() if path.exists() else None) != before:
        return "the old file has changed"
    left = sorted(os.listdir(path.parent))
    return None if left == others else f"{left} are left, there were {others}"


SINGLE = [writer for writer in WRITERS if "." in writer.target and writer.name != "CSVLogger" and not writer.missing]


def test_a_full_file_system(soak, small):
    """Of every writer, with each number of free pages at which it does not fit, over an old file and anew."""
    failures, cases, filler, rng = [], 0, small / "filler", np.random.default_rng(soak.seed)
    for writer in (SINGLE[i] for i in rng.permutation(len(SINGLE))[: soak.count(len(SINGLE), 3)]):
        path = small / "folder" / writer.target
        empty(path.parent)
        writer.write(path)  # also what is imported at first
        size = -(-path.stat().st_size // 4096)
        for over in (False, True):
            for free in range(min(size, soak.count(12, 2))):
                empty(path.parent)
                if over:
                    path.write_bytes(writer.old)
                fill(filler)
                os.truncate(filler, filler.stat().st_size - 4096 * free)
                cases += 1
                if why := fails(writer.write, path, errno.ENOSPC):
                    failures.append(f"{writer.name}, {free} pages free: {why}")
                filler.unlink()
    soak.record("file system", cases, failures, "a real full disk")


def test_a_log_on_a_full_file_system_has_whole_lines(soak, small):
    """And goes on once there is room again."""
    path, filler = small / "log.csv", small / "filler"
    logger, trainer = bp.CSVLogger(path), bp.Trainer(bp.Dense(1), "mse")
    x = np.ones((4, 2))
    trainer.fit(x, x[:, :1], epochs=1, progress=False, callbacks=[logger])
    fill(filler)
    before, record = b"", dict(trainer.history.epochs[-1])

    def logged():
        nonlocal before
        for _ in range(200):
            before = path.read_bytes()
            logger.on_epoch_end(trainer, record)

    with pytest.raises(bp.errors.PathError, match=f"{path} can't be written: No space"):
        logged()
    assert path.read_bytes() == before
    filler.unlink()
    logged()
    lines = path.read_text().splitlines()
    assert len(lines) > 202
    assert len({line.count(",") for line in lines}) == 1
    soak.record("file system", len(lines))


def test_what_is_read_only(soak, small, tmp_path):
    failures, cases = [], 0
    for writer in SINGLE:  # what is imported at first
        writer.write(tmp_path / writer.target)

    def check(what):
        nonlocal cases
        for writer in SINGLE:
            cases += 1
            path = small / what / writer.target
            if why := fails(writer.write, path, errno.EROFS, errno.EPERM, errno.EACCES):
                failures.append(f"{writer.name}, {what}: {why}")

    for what in ("folder", "files", "system"):
        (small / what).mkdir()
        for writer in SINGLE:
            (small / what / writer.target).write_bytes(writer.old)
    changed = subprocess.run(["chattr", "+i", str(small / "folder")], capture_output=True).returncode == 0
    if changed:
        check("folder")
        subprocess.run(["chattr", "-i", str(small / "folder")], check=True)
        targets = [str(path) for path in (small / "files").iterdir()]
        subprocess.run(["chattr", "+i", *targets], check=True)
        check("files")
        subprocess.run(["chattr", "-i", *targets], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    check("system")
    soak.record("file system", cases, failures, "chattr +i" if changed else "")


def test_a_folder_that_vanishes(soak, tmp_path):
    """Another thread removes and makes it again and again: a whole file or none, and no error but a typed one."""
    folder, path, failures, ended = tmp_path / "folder", tmp_path / "folder" / "m.safetensors", [], threading.Event()
    made = bp.Trainer(bp.Dense(20), "mse", seed=0).build(np.zeros((1, 20), "f4"))

    def vanish():
        while not ended.is_set():
            folder.mkdir(exist_ok=True)
            time.sleep(0.0005)
            shutil.rmtree(folder, ignore_errors=True)

    thread = threading.Thread(target=vanish)
    thread.start()
    raised = 0
    try:
        for case in range(cases := soak.count(5000, 200)):
            try:
                made.save(path)
            except Exception as error:
                raised += 1
                if why := said(error, path):
                    failures.append(f"case {case}: {why}")
    finally:
        ended.set()
        thread.join()
    assert raised > 0
    soak.record("file system", cases, failures, "a folder that vanishes")


SAVE = """
import sys, threading, numpy as np, bpnet as bp
path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
made = bp.Trainer(bp.Dense(300), "mse", seed=seed).build(np.zeros((1, 100), "f4"))
threads = [threading.Thread(target=lambda: [made.save(path) for _ in range(count)]) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_several_processes_write_one_file(soak, tmp_path):
    path, count = tmp_path / "m.safetensors", soak.count(400, 20)
    wanted = {
        bp.Trainer(bp.Dense(300), "mse", seed=seed).build(np.zeros((1, 100), "f4")).theta.tobytes() for seed in range(3)
    }
    writers = [
        subprocess.Popen([sys.executable, "-c", SAVE, str(path), str(seed), str(count)], stderr=subprocess.PIPE)
        for seed in range(3)
    ]
    seen, failures, loaded = set(), [], 0
    while any(process.poll() is None for process in writers):
        if path.exists():
            found = bp.load(path).theta.tobytes()
            loaded += 1
            seen.add(found)
    for process in writers:
        told = process.communicate()[1].decode()
        failures += [told] if process.returncode or told else []
    failures += ["a file of no writer was read"] if seen - wanted else []
    failures += [f"{names} are left"] if (names := os.listdir(tmp_path)) != ["m.safetensors"] else []
    soak.record("file system", 6 * count + loaded, failures, "6 writers of one file in 3 processes, and a reader")


LOAD = """
import sys, bpnet as bp
seen = [0, 0]
for _ in range(int(sys.argv[2])):
    try:
        bp.load(sys.argv[1])
        seen[0] += 1
    except bp.errors.FileFormatError:
        seen[1] += 1
print(*seen)
"""


def test_a_file_that_is_written_in_place_while_it_is_read(soak, tmp_path):
    """By cp or rsync --inplace, which cut it first: it is whole, or refused; the process does not end by SIGBUS."""
    path, count = tmp_path / "m.safetensors", soak.count(3000, 60)
    bp.Trainer(bp.Dense(500), "mse").build(np.zeros((1, 500), "f4")).save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(soak.seed)
    reader = subprocess.Popen([sys.executable, "-c", LOAD, str(path), str(count)], stdout=subprocess.PIPE)
    while reader.poll() is None:
        with open(path, "wb") as file:
            cut = int(rng.integers(len(whole)))
            file.write(whole[:cut])
            file.flush()
            time.sleep(0.002)
            file.write(whole[cut:])
        time.sleep(float(rng.uniform(0.0, 0.1)))
    told = reader.communicate()[0]
    assert reader.returncode == 0, f"ended by {reader.returncode}"
    good, refused = map(int, told.split())
    assert good
    assert refused
    soak.record("file system", count, detail=f"a file written in place while it is read {count:,} times: no SIGBUS")
