"""Networks in the formats of others: what these make of the file is what bpnet predicts."""

import pytest
from support.networks import drawn


def test_onnx(soak):
    """Random networks of the whole catalogue after a step, for 1, 2, 7 and 64 rows, in float32 and float64."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from support.onnx import apart

    first, worst, failures = 10_000 * soak.seed, {"float32": 0.0, "float64": 0.0}, []
    seeds = range(first, first + soak.count(400, 30))
    for seed in seeds:
        for dtype, allowed in (("float32", 1e-5), ("float64", 1e-12)):
            found = apart(drawn(seed)[0], dtype)
            worst[dtype] = max(worst[dtype], found)
            if not found <= allowed:
                failures.append(f"network {seed} in {dtype}: {found:.1e} apart")
    detail = ", ".join(f"{dtype} {value:.0e}" for dtype, value in worst.items())
    soak.record(
        "export to ONNX", 2 * len(seeds), failures, f"ONNX's evaluator and onnxruntime, at most apart: {detail}"
    )
