"""Networks in the formats of others: what these make of the file is what bpnet predicts."""

import pytest
from support.networks import drawn


def test_onnx(soak):
    """Random networks of the whole catalogue after a step, for 1, 2, 7 and 64 rows, in float32 and float64.

    A network that float32 itself can't say to 1e-5 is passed over, and counted: one of which bpnet's own predictions
    move half as far as they are apart, two results being compared, where each number of the input is an ulp off.
    """
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from support.onnx import largest_distance, largest_move

    first, worst, failures, passed_over = 10_000 * soak.seed, {"float32": 0.0, "float64": 0.0}, [], 0
    seeds = range(first, first + soak.count(400, 30))
    for seed in seeds:
        for dtype, allowed in (("float32", 1e-5), ("float64", 1e-12)):
            problem = drawn(seed)[0]
            found = largest_distance(problem, dtype)
            if found > allowed and 2.0 * largest_move(problem, dtype) >= found:
                passed_over += 1
                continue
            worst[dtype] = max(worst[dtype], found)
            if not found <= allowed:
                failures.append(f"network {seed} in {dtype}: {found:.1e} apart")
    most = ", ".join(f"{value:.0e} in {dtype}" for dtype, value in worst.items())
    detail = f"ONNX's evaluator and onnxruntime: {most} apart; {passed_over} passed over, too steep for their type"
    soak.record("export to ONNX", 2 * len(seeds) - passed_over, failures, detail)
