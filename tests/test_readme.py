"""README's examples: each block of Python runs alone, in an empty folder, and prints what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs_alone(number: int, tmp_path: Path) -> None:
    code = BLOCKS[number]
    for module in re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE):
        found = pytest.importorskip(module, reason=f"{module} is not installed")
        if module == "cupy" and not found.is_available():
            pytest.skip("no CUDA device")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"^print\(.*?\)\s+# ([\d{].*)$", code, flags=re.MULTILINE):
        pattern = re.escape(promised).replace(re.escape("..."), r"\d*")
        assert re.search(pattern, done.stdout), f"{promised!r} is not in {done.stdout!r}"


def test_it_is_read_in_three_minutes() -> None:
    assert len(PAGE.splitlines()) <= 160
    assert len(BLOCKS) >= 3


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / target).exists(), target
