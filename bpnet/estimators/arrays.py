"""Arrays of every library in the estimators: scikit-learn's checks, which are for NumPy's, made for the others too.

Everything follows X: what is fitted and what is predicted has its library, device and floating type.  Targets and
weights are looked at on the host, wherever they come from, and then brought to X.
"""

from typing import Any

import array_api_compat
import numpy as np

from bpnet.backends import Array, Backend, backend_of
from bpnet.errors import DataError, DTypeError, fit_for_a_screen

from sklearn.utils.validation import _check_sample_weight, validate_data  # isort: skip


def first_of(x: Any) -> Any:
    """x, or where it is several arrays, the first of them."""
    return next(iter(x.values()), None) if type(x) is dict else x  # rows of scipy.sparse may be a kind of dict


def foreign(x: Any) -> Backend | None:
    """The backend of an array of another library than NumPy; None for all else, lists and frames among them.

    None for Dask's arrays too, which NumPy computes where it reads them, as scikit-learn has it.
    """
    x = first_of(x)
    if isinstance(x, np.ndarray) or not array_api_compat.is_array_api_obj(x) or array_api_compat.is_dask_array(x):
        return None
    return backend_of(x, "X")


def to_host(x: Any) -> Any:
    """An array of another library as NumPy's; all else as it is."""
    backend = foreign(x)
    return x if backend is None else backend.to_host(backend.detach(x))


def beside(x: Array, values: Any) -> Array:
    """Values of the host in the library and on the device of x; floats in its type."""
    backend, x = foreign(x), first_of(x)
    dtype = values.dtype.name
    if dtype.startswith("float"):
        dtype = "float64" if x.dtype == (np if backend is None else backend.xp).float64 else "float32"
    if backend is None:
        return np.ascontiguousarray(values, dtype=dtype)
    return backend.from_host(np.ascontiguousarray(values), getattr(backend.xp, dtype), backend.device(x))


def take(x: Any, rows: Any) -> Any:
    """The rows of x with these numbers, an array of the host."""
    if isinstance(x, dict):
        return {name: take(array, rows) for name, array in x.items()}
    backend = foreign(x)
    return x[rows] if backend is None else backend.xp.take(x, beside(x, rows), axis=0)


def validated(estimator: Any, X: Any, y: Any = "no_validation", *, reset: bool, **checks: Any) -> Any:
    """X of two axes, of finite numbers and NaN, and y, on the host, as `validate_data` of scikit-learn has them."""
    y, backend = y if isinstance(y, str) else to_host(y), foreign(X)
    if not isinstance(y, str):
        checks |= {"multi_output": True}
    if backend is None:
        dtype = (np.float64, np.float32)
        checks |= {"accept_sparse": ["csr", "csc"], "dtype": dtype, "order": "C"}
        checks["ensure_all_finite"] = True if hasattr(X, "tocsr") else "allow-nan"
        try:
            return validate_data(estimator, X, y, reset=reset, **checks)
        except ValueError as error:
            if "could not convert string" not in str(error):
                raise
            raise DataError(
                f"{fit_for_a_screen(str(error))}; categorical_features='from_dtype' takes text as categories"
            ) from None
    xp, X = backend.xp, backend.detach(X)
    kind = np.complex128 if xp.isdtype(X.dtype, "complex floating") else np.float64
    standing = np.broadcast_to(kind(0.0), tuple(X.shape))  # for X: its shape is looked at, but not its values
    found = validate_data(estimator, standing, y, reset=reset, dtype=None, ensure_all_finite=False, **checks)
    if X.dtype not in (xp.float64, xp.float32):
        X = xp.astype(X, xp.float64)
    if bool(xp.any(xp.isinf(X))):
        raise DataError(f"Input X contains infinity: {type(estimator).__name__} wants finite numbers, or NaN for none")
    return X if isinstance(y, str) else (X, found[1])


def weights(sample_weight: Any, X: Any) -> Any:
    """The weights of the rows of X as an array of the host."""
    rows = X if foreign(X) is None and not isinstance(X, dict) else np.broadcast_to(0.0, tuple(first_of(X).shape))
    sample_weight = to_host(sample_weight)
    if isinstance(sample_weight, complex) or getattr(getattr(sample_weight, "dtype", None), "kind", "") == "c":
        raise DTypeError("sample_weight holds complex numbers; expected how much each row counts")
    return _check_sample_weight(sample_weight, rows)


def check_place(estimator: Any, X: Any, theta: Array, method: str) -> None:
    """Raise DataError unless X is where what was fitted is; with device= NumPy's may come too."""
    X = first_of(X)
    if estimator.device is not None and foreign(X) is None:
        return
    found, known = foreign(X), foreign(theta)
    if found is known and (found is None or found.device(X) == found.device(theta)):
        return
    own, other = (
        "NumPy or what it can read" if b is None else f"{b.name} on {b.device(a)}"
        for b, a in ((known, theta), (found, X))
    )
    raise DataError(
        f"Inputs passed to {type(estimator).__name__}.{method}() must use the same namespace and the same device as "
        f"those passed to fit(): that was {own}, and this is {other}; convert X, or fit on arrays like it"
    )
