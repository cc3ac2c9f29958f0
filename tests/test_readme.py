"""README's examples: each block of Python runs alone, in an empty folder, and prints what it says.  And its links."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import has_device

import bpnet as bp

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs_alone(number: int, tmp_path: Path) -> None:
    code = BLOCKS[number]
    for module in re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE):
        pytest.importorskip(module, reason=f"{module} is not installed")
        if module == "cupy" and not has_device():
            pytest.skip("no CUDA device")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"^print\(.*?\)\s+# ([\d{].*)$", code, flags=re.MULTILINE):
        pattern = re.escape(promised).replace(re.escape("..."), r"\d*")
        assert re.search(pattern, done.stdout), f"{promised!r} is not in {done.stdout!r}"


def test_it_is_read_in_five_minutes() -> None:
    assert len(PAGE.splitlines()) <= 260
    assert len(BLOCKS) >= 3


TARGETS = re.findall(r"\]\(([^)]+)", PAGE)


def test_its_links_lead_somewhere() -> None:
    assert TARGETS
    for target in TARGETS:
        path = target.partition("#")[0]
        root = Path(bp.__file__).parent.parent if path.startswith("bpnet/") else ROOT  # a wheel may be what is tested
        assert target.startswith(("#", "https://")) or (root / path).exists(), target


def test_on_pypi_its_links_are_absolute_or_none() -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    from hatch_build import with_absolute_links

    files = [target for target in TARGETS if not target.startswith(("#", "https://"))]
    assert files
    nowhere, there = (with_absolute_links(PAGE, base, "v1.2.3") for base in ("", "https://example.org/bpnet"))
    for target in files:
        assert f"({target})" not in nowhere
        kind = "raw" if target.endswith(".svg") else "blob"
        assert f"](https://example.org/bpnet/{kind}/v1.2.3/{target})" in there


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {bp.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_loss_and_the_optimizer_of_the_guide_work() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = page.split("## A loss or an optimizer")[1].split("\n## ")[0]
    code = "\n".join(line.removeprefix("    ") for line in part.splitlines() if line.startswith("    "))
    x = np.random.default_rng(0).normal(size=(32, 5))
    space: dict[str, Any] = {"bp": bp, "dataclass": dataclass, "x": x, "__name__": "guide"}
    exec(code, space)
    trainer = bp.Trainer(bp.Dense(2), space["Cauchy"](), space["Signum"](0.01))
    history = trainer.fit(x, x[:, :2], epochs=50, progress=False)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
