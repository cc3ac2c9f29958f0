"""Model files, export to other formats, and weights from and to other libraries; a name is imported when it is used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker sees; a test holds it against `names.PUBLIC`
    from bpnet.export.c import to_c
    from bpnet.export.numpy_source import to_numpy_source
    from bpnet.export.onnx.write import to_onnx
    from bpnet.export.torch_module import to_torch_module
    from bpnet.weights.keras import from_keras, to_keras
    from bpnet.weights.sklearn import from_sklearn
    from bpnet.weights.torch import from_torch, to_torch
else:
    from bpnet import names

    __getattr__ = names.on_demand("bpnet.files")

__all__ = [
    "from_keras",
    "from_sklearn",
    "from_torch",
    "to_c",
    "to_keras",
    "to_numpy_source",
    "to_onnx",
    "to_torch",
    "to_torch_module",
]


def __dir__() -> list[str]:
    return __all__
