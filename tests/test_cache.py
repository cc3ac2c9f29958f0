"""Machine code on disk: only what its user wrote, whole and by the same key, is ever run."""

import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpnet.compiler.llvm import cache

KEY, CODE, NAME = b"k" * 32, b"machine code" * 100, "fused-0123.o"
owners = pytest.mark.skipif(not cache.HAS_OWNERS, reason="files have no owners here")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where machine code is kept; not there yet."""
    monkeypatch.setenv("BPNET_CACHE_DIR", str(tmp_path / "above" / "cache"))
    cache._warn.cache_clear()
    yield tmp_path / "above" / "cache"
    cache._warn.cache_clear()


def keeps(name: str = NAME, key: bytes = KEY) -> bool:
    """Whether what is written is found again."""
    cache.write(name, key, CODE)
    found = cache.read(name, key)
    assert found in (CODE, None)
    return found is not None


def test_what_was_written_is_read(folder: Path) -> None:
    assert cache.read(NAME, KEY) is None
    assert not folder.parent.exists(), "nothing is made where nothing is written"
    assert keeps()
    assert os.listdir(folder) == [NAME]
    assert cache.read("fused-4567.o", KEY) is None


@owners
def test_the_folder_is_made_for_its_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert keeps()
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder / NAME)] == [0o700, 0o700, 0o600]


def test_two_files_in_each_others_place_are_not_read(folder: Path) -> None:
    assert keeps("fused-0.o", b"0" * 32)
    assert keeps("fused-1.o", b"1" * 32)
    (folder / "fused-0.o").rename(folder / "x")
    (folder / "fused-1.o").rename(folder / "fused-0.o")
    (folder / "x").rename(folder / "fused-1.o")
    assert cache.read("fused-0.o", b"0" * 32) is None
    assert cache.read("fused-1.o", b"1" * 32) is None


def test_damaged_files_are_not_read_and_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeps()
    whole = (folder / NAME).read_bytes()
    for damaged in (b"", whole[:31], whole[:32], whole[:100], whole + b"\0", b"\1" + whole[1:], whole[:-1] + b"\1"):
        (folder / NAME).write_bytes(damaged)
        assert cache.read(NAME, KEY) is None
        assert keeps()
    monkeypatch.setattr(cache, "LARGEST", len(CODE))
    assert cache.read(NAME, KEY) is None


@owners
@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "device", "writable", "foreign"])
def test_only_ordinary_files_of_the_user_are_read(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeps()
    path = folder / NAME
    if kind == "writable":
        path.chmod(0o622)
    elif kind == "foreign":
        status = os.fstat

        def foreign(number: int) -> Any:
            found = status(number)
            return found if stat.S_ISDIR(found.st_mode) else os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))

        monkeypatch.setattr(os, "fstat", foreign)
    else:
        path.rename(folder / "elsewhere")
        if kind == "link":
            path.symlink_to("elsewhere")
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            (os.mkfifo if kind == "fifo" else os.mkdir)(path)
    assert cache.read(NAME, KEY) is None
    monkeypatch.undo()
    monkeypatch.setenv("BPNET_CACHE_DIR", str(folder))
    assert keeps() is (kind != "folder"), "it is replaced"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@owners
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o755])
def test_a_folder_open_to_others_is_not_used(mode: int, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert keeps()
    folder.chmod(mode)
    for _ in range(3):
        assert not keeps()
    (said,) = warnings(caplog)
    assert f"{folder} is open to other users; chmod 700 closes it" in said
    folder.chmod(0o700)
    assert keeps()


@owners
def test_a_folder_of_another_user_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where sudo keeps $HOME; and no folder is made in another's, which that user could then not use."""
    assert keeps()
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    for _ in range(3):
        assert not keeps()
    monkeypatch.setenv("BPNET_CACHE_DIR", str(folder / "deeper"))
    for _ in range(3):
        assert not keeps()
    said = warnings(caplog)
    assert f"{folder} belongs to another user" in said[0]
    assert "BPNET_CACHE_DIR may name a folder that is yours alone" in said[0]
    assert len(said) == len(set(said))


@owners
def test_a_link_to_a_folder_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert keeps()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("BPNET_CACHE_DIR", str(tmp_path / "link"))
    for _ in range(2):
        assert not keeps()
    (said,) = warnings(caplog)
    assert f"{tmp_path / 'link'} is a link, which is not followed" in said


@pytest.mark.parametrize("variable", ["BPNET_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_relative_folders_are_ignored(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Code of the folder that happens to be the current one would run."""
    if variable != "BPNET_CACHE_DIR" and sys.platform != "linux":
        pytest.skip("other systems have other variables")
    for name in ("BPNET_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "somewhere")
    for _ in range(3):
        assert keeps() is (variable != "HOME")
    assert not (tmp_path / "somewhere").exists()
    expected = [f"{variable} is 'somewhere', which is ignored: expected an absolute path"]
    assert warnings(caplog) == (expected if variable != "HOME" else [])


def test_where_nothing_can_be_written_nothing_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeps()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        cache.write("fused-1.o", KEY, CODE)
    assert os.listdir(folder) == [NAME]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.write("fused-1.o", KEY, CODE)
    assert os.listdir(folder) == [NAME]
    occupied = folder / "file"
    occupied.write_text("")
    monkeypatch.setenv("BPNET_CACHE_DIR", str(occupied / "folder"))
    assert not keeps()


def test_what_killed_processes_left_is_removed(folder: Path) -> None:
    assert keeps()
    for name in (".bpnet-0.part", ".bpnet-1.part", "own.part"):
        (folder / name).write_bytes(b"half")
    cache._written.clear()  # as in another process
    assert keeps()
    assert sorted(os.listdir(folder)) == [NAME, "own.part"]


def test_what_is_not_used_for_long_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other files in the folder, nothing is touched.  Bytes are counted, in whole blocks."""
    names = [f"fused-{i:024x}.o" for i in range(5)] + [f"device-{5:024x}.json"]
    assert all(map(keeps, names))
    (folder / "a user's own").write_bytes(b"")
    for i, path in enumerate(map(folder.joinpath, [*names, "a user's own"])):
        os.utime(path, (time.time() - (9 - i) * cache.DAY,) * 2)
    assert cache.read(names[0], KEY) is not None, "which is to use it"
    for kept, left in ((6 * 4096, 6), (6 * 4096 - 1, 2)):
        monkeypatch.setattr(cache, "KEPT", kept)
        cache._written.clear()
        assert keeps(names[0])
        assert len(os.listdir(folder)) == left + 1
    assert sorted(os.listdir(folder)) == ["a user's own", names[5], names[0]]


def test_a_process_that_lives_long_makes_room_again_and_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT", 2**18)
    monkeypatch.setattr(cache, "LOOKED_AFTER", 2**14)
    rng, most = np.random.default_rng(0), 0
    for i in range(100):
        cache.write(f"fused-{i:024x}.o", KEY, bytes(int(rng.integers(1, 16_000))))
        most = max(most, sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.iterdir()))
    assert 2**17 < most < 2**18 + 2**15
    monkeypatch.setattr(cache, "LARGEST", 1000)
    assert not keeps("fused-x.o"), "nothing is that long"
    assert not (folder / "fused-x.o").exists()


def test_what_was_written_by_files_that_have_changed_since_is_for_this_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where bpnet is installed anew while a notebook runs: old code is not kept as if it were of the new sources."""
    source = tmp_path / "source.py"
    source.write_text("1")
    assert cache.hash_of([source]) != cache.hash_of([source])
    monkeypatch.setattr(cache, "BEGAN", time.time() + 1.0)
    first = cache.hash_of([source])
    assert cache.hash_of([source]) == first
    source.write_text("2")
    assert cache.hash_of([source]) != first


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other variables")
@pytest.mark.parametrize("home", ["", "none", "file"])
def test_without_a_home_nothing_is_made(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("BPNET_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home:
        monkeypatch.setenv("HOME", str(tmp_path / home))
    else:  # as where the system knows no such user
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache.cache_folder() is None
    assert not keeps()
    assert os.listdir(tmp_path) == ["file"]


TRAIN = """
import numpy as np, bpnet as bp
x = np.random.default_rng(0).random((100, 5), "f4")
net = bp.Sequential(bp.Dense(7, "tanh"), bp.BatchNorm(), bp.Dense(2))
trainer = bp.Trainer(net, "mse", seed=1, compile=True)
trainer.fit(x, x[:, :2], epochs=3, progress=False)
print(trainer.theta.tolist())
"""


def test_a_training_runs_no_code_of_another_key(folder: Path) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")

    def train() -> str:
        return subprocess.run([sys.executable, "-c", TRAIN], check=True, capture_output=True, text=True).stdout

    first = train()
    files = sorted(folder.glob("fused-*.o"))
    assert len(files) > 3
    codes = [file.read_bytes() for file in files]
    for file, code in zip(files, codes[1:] + codes[:1], strict=True):
        file.write_bytes(code)
    assert train() == first
    assert [file.read_bytes() for file in files] == codes
