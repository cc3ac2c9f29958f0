"""Files are written whole or not at all, and only ordinary ones are read."""

import csv
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.power import Disk, state_of
from support.syscalls import AVAILABLE, ERRORS, Call, mark, marked, trace

import bpnet as bp
from bpnet import disk
from bpnet.disk import append, make_folder, open_ordinary, remove, write_atomically

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions, and locks what is read")
links = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here, and links ask for a privilege")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_there_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        with write_atomically(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
        assert names(tmp_path) == ["file"]
    with write_atomically(str(path), "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["ä", 1], ["b", 2]])
    assert path.read_bytes() == "ä,1\r\nb,2\r\n".encode()
    with write_atomically(tmp_path / ("long" * 60)) as file:
        file.write(b"the name leaves no room for another ending")
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError, ValueError, SystemExit])
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
@pytest.mark.parametrize("before", [True, False])
def test_after_any_failure_all_is_as_before(
    kind: type[BaseException], moment: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if before:
        path.write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise kind(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with write_atomically(path) as file:
            file.write(b"new")
            if moment == "write":
                fail()

    if moment != "write":
        monkeypatch.setattr(os, moment, fail)
    with pytest.raises(kind) as caught:
        write()
    if kind is OSError:
        assert isinstance(caught.value, bp.errors.PathError)
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value) == f"{path} can't be written: No space left on device"
    assert names(tmp_path) == (["file"] if before else [])
    assert not before or path.read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device is always full here")
def test_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from bpnet.disk import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with write_atomically(sys.argv[1]) as file:\n"
        "        file.write(b'x' * 5000)\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, check=True)
    assert done.stdout == "PathError\n"
    assert names(tmp_path) == []


@posix
def test_threads_and_readers_meet_whole_files_only(tmp_path: Path) -> None:
    path, seen, whole = tmp_path / "file", Counter[bytes](), {b"a" * 100_000, b"b" * 100_000}
    path.write_bytes(min(whole))

    def write(content: bytes) -> None:
        for _ in range(30):
            with write_atomically(path) as file:
                file.write(content[:50_000])
                file.write(content[50_000:])

    def read() -> None:
        while any(thread.is_alive() for thread in writers):
            seen[path.read_bytes()] += 1

    writers = [threading.Thread(target=write, args=[content]) for content in 2 * sorted(whole)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in (*writers, *readers):
        thread.join()
    assert seen.keys() <= whole
    assert names(tmp_path) == ["file"]


def test_a_file_that_is_being_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    replace, tries = os.replace, []

    def busy(*args: Any, **how: Any) -> None:
        tries.append(args)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(*args, **how)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr("bpnet.disk.WAITS", (0.0, 0.0, 0.0))
    with write_atomically(tmp_path / "file") as file:
        file.write(b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    tries.clear()
    monkeypatch.setattr("bpnet.disk.WAITS", (0.0,))
    with pytest.raises(PermissionError, match="Access is denied"), write_atomically(tmp_path / "file") as file:
        file.write(b"other")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]


@posix
def test_permissions_stay_and_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for wanted in (0o600, 0o664, 0o666):
            path = tmp_path / "old"
            path.write_bytes(b"")
            path.chmod(wanted)
            with write_atomically(path):
                (part,) = [name for name in names(tmp_path) if name != "old"]
                assert mode(tmp_path / part) & ~wanted == 0, "open to others while it is written"
            assert mode(path) == wanted
        with write_atomically(tmp_path / "new"):
            pass
        assert mode(tmp_path / "new") == 0o640
    finally:
        os.umask(before)


@links
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("runs/7")
    for content in (b"first", b"second"):  # a target that is not there yet, and one that is
        with write_atomically(link) as file:
            file.write(content)
        assert link.is_symlink()
        assert (tmp_path / "runs" / "7").read_bytes() == content
    assert names(tmp_path) == ["latest", "runs"]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(OSError, match="latest can't be written"), write_atomically(link):
        pass


@links
def test_links_of_others_are_not_followed_where_all_may_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.write_bytes(b"precious")
    (shared / "file").symlink_to(victim)
    status, mine = os.lstat, os.geteuid()

    def foreign(path: Any, **how: Any) -> os.stat_result:
        found = status(path, **how)
        return os.stat_result((*found[:4], mine + 1, *found[5:])) if stat.S_ISLNK(found.st_mode) else found

    monkeypatch.setattr(os, "lstat", foreign)
    with pytest.raises(PermissionError, match="another user's link"), write_atomically(shared / "file"):
        raise AssertionError("it was opened")
    assert victim.read_bytes() == b"precious"
    shared.chmod(0o755)  # where a colleague's link is as good as the colleague
    with write_atomically(shared / "file") as file:
        file.write(b"new")
    assert victim.read_bytes() == b"new"


@links
def test_what_is_planted_beside_the_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one who guessed the name finds that it is not opened."""
    monkeypatch.setattr("bpnet.disk.secrets.token_hex", lambda n: "0" * 2 * n)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / (".bpnet-" + "0" * 16 + ".part")).symlink_to(victim)
    with pytest.raises(bp.errors.PathError, match="exists"), write_atomically(tmp_path / "file"):
        raise AssertionError("it was opened")
    assert victim.read_bytes() == b"precious"


def test_places_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, kind: type[Exception], pattern: str) -> None:
        with pytest.raises(kind, match=pattern) as caught, write_atomically(path):
            raise AssertionError("there was nothing to write to")
        assert isinstance(caught.value, bp.errors.PathError)

    (tmp_path / "file").write_bytes(b"kept")
    refused(tmp_path, IsADirectoryError, "is a folder; expected the name of a file")
    refused(tmp_path / "none" / "file", FileNotFoundError, "there is no folder .*none")
    refused(tmp_path / "file" / "file", OSError, "file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        refused(tmp_path / "fifo", OSError, "fifo is no ordinary file, so it is left alone")
        refused(Path("/dev/null"), OSError, "null is no ordinary file")
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(tmp_path / "file", PermissionError, "file can't be written: it is write-protected")
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_only_ordinary_files_are_opened_to_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_ordinary(tmp_path / name) as file:
            assert file.read() == b"content"
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(bp.errors.PathError):
            open_ordinary(path)
    with pytest.raises(FileNotFoundError):
        open_ordinary(tmp_path / "none")


def test_a_library_that_writes_by_the_descriptor_writes_through_the_file(tmp_path: Path) -> None:
    """NumPy, given a descriptor, overlooks that its own buffer didn't fit on the disk."""
    x = np.arange(1000.0)
    with write_atomically(tmp_path / "x.npy") as file:
        with pytest.raises(OSError, match="write"):
            file.fileno()
        np.save(file, x)
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)


def write_and_wait(folder: Path) -> "subprocess.Popen[bytes]":
    """A process in the midst of writing a file in a folder."""
    code = (
        "import sys, time\n"
        "from bpnet.disk import write_atomically\n"
        "with write_atomically(sys.argv[1]) as file:\n"
        "    print('begun', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "other")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


@posix
def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    """But nothing of one that still writes, nor what is not of a writing."""
    (tmp_path / ".bpnet-own").write_bytes(b"")
    (tmp_path / ".bpnet-folder.part").mkdir()
    process = write_and_wait(tmp_path)
    for killed in (False, True):
        if killed:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        with write_atomically(tmp_path / "file"):
            pass
        parts = [name for name in names(tmp_path) if name.endswith(".part")]
        assert len(parts) == 2 - killed
    assert names(tmp_path) == [".bpnet-folder.part", ".bpnet-own", "file"]


def test_a_line_is_appended_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log", os.write
    path.write_bytes(b"first\n")
    append(str(path), b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"

    def full(number: int, data: Any) -> int:
        if len(data) < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(bp.errors.PathError, match="log can't be written: No space left on device"):
        append(str(path), b"third line\n")
    assert path.read_bytes() == b"first\nsecond\n"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="none can't be written"):
        append(str(tmp_path / "none"), b"line")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(bp.errors.PathError, match="fifo"):
            append(str(tmp_path / "fifo"), b"line")


def test_a_file_is_removed_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        remove(str(tmp_path / "file"))
    with pytest.raises(bp.errors.PathError, match=f"{tmp_path.name} can't be removed"):
        remove(str(tmp_path))


@posix
@pytest.mark.parametrize(("number", "said"), [(errno.EINVAL, None), (errno.EIO, "is written, but a power cut may")])
def test_a_folder_that_can_not_be_synced(
    number: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems don't do that for folders; where the disk fails, that is said."""
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    monkeypatch.setattr(disk.fcntl, "F_FULLFSYNC", None, raising=False)
    if said is None:
        with write_atomically(tmp_path / "file") as file:
            file.write(b"new")
    else:
        with pytest.raises(bp.errors.PathError, match=f"file {said}"), write_atomically(tmp_path / "file") as file:
            file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


traced = pytest.mark.skipif(not AVAILABLE, reason="calls are traced on Linux on x86-64 alone")


def rewrite(path: Path) -> None:
    """Two files, of which the second is in a folder that is made for it, and replaces one."""
    make_folder(str(path / "a" / "b"))
    for name, content in (("a/b/file", b"first"), ("a/b/file", b"second" * 5000)):
        with write_atomically(path / name) as file:
            file.write(content)
        mark(path, "written")


@traced
@pytest.mark.parametrize("lost", ["nothing", "fsync of the file", "fsync of the folder", "fsync of a new folder"])
def test_a_power_cut_leaves_the_old_file_or_the_new_one(lost: str, tmp_path: Path) -> None:
    """And the new one once it has returned; were one fsync missing, the test would see it."""
    done = trace(lambda: rewrite(tmp_path), tmp_path)
    assert not done.error
    replay, wrong, states = Disk(tmp_path, {".": None}), [], 0
    wanted, returned = [None, b"first", b"second" * 5000], 0

    def is_lost(call: Call) -> bool:
        kind = "file" if call.paths[0].endswith(".part") else "folder" if call.paths[0].endswith("b") else "new folder"
        return call.name == "fsync" and lost in (f"fsync of the {kind}", f"fsync of a {kind}")

    for call in done.calls:
        if not is_lost(call):
            replay.do(call)
        returned += marked(call) is not None
        for state in replay.crashed(np.random.default_rng(0), 4096, lambda path: not path.endswith(".part")):
            states += 1
            if state.get("a/b/file") not in wanted[returned:][:2]:
                wrong.append(state)
    assert states > 30
    assert bool(wrong) == (lost != "nothing"), wrong[:3]


@traced
def test_every_call_may_fail(tmp_path: Path) -> None:
    """Once each, with its likeliest error; tests/soak tries all errors on all that writes files."""
    path = tmp_path / "folder" / "file"

    def begin() -> None:
        for old in (*tmp_path.glob("folder/*"), *tmp_path.glob("folder/.bpnet-*")):
            old.unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"old")

    def write() -> str | None:
        try:
            with write_atomically(path) as file:
                file.write(b"new")
        except bp.errors.PathError as error:
            return str(error)
        return None

    begin()
    calls = trace(write, path.parent).calls
    said = Counter[str]()
    for number, call in enumerate(calls):
        begin()
        fault = ERRORS[call.name][0]
        done = trace(write, path.parent, lambda count, _, n=number, fault=fault: fault if count == n else None)
        assert not done.error, f"{call.name}: {done.error}"
        files = {name: content for name, content in state_of(path.parent).items() if content is not None}
        assert files == {"file": b"new"} if done.result is None else files in ({"file": b"old"}, {"file": b"new"})
        if done.result is not None:
            assert str(path) in done.result
            said[call.name] += 1
            late = files["file"] == b"new"
            assert not late or call.name in ("close", "fsync", "open"), call
    assert said.keys() >= {"open", "write", "fsync", "rename", "close"}, json.dumps(said)


@posix
def test_a_mapped_file_that_is_cut_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Reading behind the end of a map ends the process, so the length is looked at before each batch."""

    class Cut(bp.Callback):
        def on_epoch_end(self, trainer: bp.Trainer, record: Any) -> None:
            if record["epoch"] == 2:
                os.truncate(tmp_path / "x.npy", 1000)

    x = np.random.default_rng(0).standard_normal((2000, 10))
    for name in ("x.npy", "whole.npy"):
        np.save(tmp_path / name, x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    trainer = bp.Trainer(bp.Dense(1), "mse", compile=False)
    said = r"x is a memory map of .*x.npy, which has been cut to 1,000 bytes of 160,128: restore the file, or pass a"
    with pytest.raises(bp.errors.PathError, match=said):
        trainer.fit(mapped[:1500], x[:1500, :1], epochs=4, batch_size=100, progress=False, callbacks=[Cut()])
    assert len(trainer.history) == 2
    with pytest.raises(bp.errors.PathError, match="y is a memory map"):
        trainer.evaluate(x, np.asarray(mapped)[:, :1])
    whole, y = np.asarray(np.load(tmp_path / "whole.npy", mmap_mode="r")), x[:1000, :1]
    calls = (trainer.predict, lambda part: trainer.step(part, y))
    for call in calls:  # which look no more at much else of batches that are like the last
        call(whole[:1000])
    os.truncate(tmp_path / "whole.npy", 1000)
    for call in calls:
        with pytest.raises(bp.errors.PathError, match="x is a memory map of"):
            call(whole[1000:])
    np.save(tmp_path / "x.npy", x)
    trainer.fit(np.load(tmp_path / "x.npy", mmap_mode="r"), x[:, :1], epochs=1, progress=False)
