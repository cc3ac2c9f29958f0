"""Files that are damaged or hostile are refused by name: at once, in little memory, and without running anything."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from support.fuzzer import fuzz
from support.hostile import Loader
from support.hostile_files import bombs, of_bytes, of_descriptions, sound, sound_table

import bpnet as bp


def test_truncation_at_every_byte_and_every_bit_flip(soak: Any, tmp_path: Path) -> None:
    """Of a file of 10 KB: with a history, buffers, state, metadata, and what a training goes on from."""
    x = np.random.default_rng(soak.seed).standard_normal((32, 8))
    network = bp.Sequential(bp.Dense(16, "tanh"), bp.BatchNorm(), bp.Dense(8))
    trainer = bp.Trainer(network, "mse", bp.Adam(0.01), seed=soak.seed)
    trainer.fit(x, x, epochs=3, batch_size=8, progress=False)
    path = tmp_path / "m.safetensors"
    trainer.save(path, metadata={"notes": "αβ\x1f" + "x" * 200, "list": [1, 2.5, None, True]})
    whole = path.read_bytes()
    assert 9_000 < len(whole) < 16_000, len(whole)
    rng, accepted = np.random.default_rng(soak.seed), []
    lengths = np.sort(rng.permutation(len(whole))[: soak.count(len(whole), 1500)])
    bits = np.sort(rng.permutation(8 * len(whole))[: soak.count(8 * len(whole), 3000)])

    def refused(what: str) -> None:
        try:
            bp.load(path)
        except bp.errors.FileFormatError:
            return
        accepted.append(what)

    with open(path, "r+b", buffering=0) as file:
        for place, bit in (divmod(int(n), 8) for n in bits):
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << bit]))
            refused(f"bit {bit} of byte {place} flipped")
            file.seek(place)
            file.write(whole[place : place + 1])
        for length in lengths[::-1].tolist():
            file.truncate(length)
            refused(f"cut to {length} bytes")
    path.write_bytes(whole)
    assert np.array_equal(bp.load(path).theta, trainer.theta)
    detail = f"a file of {len(whole):,} bytes: {len(bits):,} flips, {len(lengths):,} lengths"
    soak.record("damage", cases=len(bits) + len(lengths), failures=accepted, detail=detail)


def test_hostile_files(soak: Any, tmp_path: Path) -> None:
    path, failures, slowest, largest, cases = tmp_path / "m.safetensors", [], 0.0, 0, 0
    whole, table = sound(), sound_table()
    with Loader() as loader:
        for name, data in (("a model", whole), ("a table", table)):
            path.write_bytes(data)
            outcome = loader.load(path)
            assert outcome.kind == "loaded", (name, outcome)
            assert not outcome.faults(len(data), refused=False), (name, outcome)
        large = bombs(8) if soak.sample else chain(bombs(18), bombs(95))
        for name, data in chain(of_bytes(whole), of_descriptions(whole, table), large):
            path.write_bytes(data)
            outcome = loader.load(path)
            failures += [f"{name}: {fault}" for fault in outcome.faults(len(data))]
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.bytes - 2 * len(data))
            cases += 1
    detail = (
        f"{cases} files by hand: slowest {slowest:.2f} s, most memory beyond twice the file {largest / 2**20:.0f} MiB"
    )
    soak.record("hostile files", cases=cases, failures=failures, detail=detail)


def test_mutations(soak: Any, tmp_path: Path) -> None:
    """Coverage-guided where atheris is installed; each is loaded, and most have the right hash."""
    found = fuzz(tmp_path, soak.count(1_000_000, 3_000), soak.seed, budget=soak.count(10**9, 8))
    how = "guided by coverage (atheris)" if found["guided"] else "at random, since atheris is not installed"
    rate, loaded = found["mutations"] / found["seconds"], found["kinds"].get("loaded", 0)
    detail = (
        f"{found['mutations']:,} mutations {how}, {rate:,.0f} a second, {found['read']:,} got beyond the "
        f"hash, {loaded:,} were sound: slowest {found['slowest']:.2f} s, most memory {found['most'] / 2**20:.0f} MiB"
    )
    soak.record("hostile files", cases=found["mutations"], failures=found["faults"], detail=detail)
