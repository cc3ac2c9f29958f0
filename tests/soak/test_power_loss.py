"""Power loss."""


def test_skeleton(soak):
    soak.record("power loss", cases=1)
