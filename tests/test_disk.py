"""Files are written whole or not at all, and only ordinary ones are read."""

import csv
import errno
import os
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import bpnet as bp
from bpnet.disk import open_ordinary, write_atomically

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
