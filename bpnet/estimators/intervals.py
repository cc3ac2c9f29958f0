"""What the estimators say besides one value a row: deviations, quantiles, intervals, and sets of classes.

Rows by which an interval or a set is calibrated must be other ones than those that the network was trained on, and come
from where the rows come from that it is asked for; see `bpnet.tabular.conformal` for what is then promised.
"""

from typing import Any, Self

import numpy as np

from bpnet.backends import Array, Backend, backend_of
from bpnet.backends.interrupts import methods_end_sessions
from bpnet.errors import DataError, OptionError, ShapeError
from bpnet.estimators.arrays import beside, foreign, take, to_host
from bpnet.estimators.sparse import is_sparse
from bpnet.losses.base import Loss
from bpnet.options import flag, whole
from bpnet.tabular import calibration
from bpnet.tabular.distributions import drawn_moments, moments, no_deviation
from bpnet.tabular.distributions import quantiles as quantiles_of
from bpnet.tabular.sampling import samples as networks

from sklearn.base import is_classifier  # isort: skip
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted


@methods_end_sessions
class Calibrated:
    """An estimator that may be calibrated by held-out rows."""

    calibration_fraction: Any
    random_state: Any
    _trainer: Any
    calibration_scores_: Array

    def calibrate(self, X: Any, y: Any) -> Self:
        raise NotImplementedError

    def _fit_and_calibrate(self, X: Any, y: Any, sample_weight: Any, validation_data: Any) -> Self:
        """Fit, and where some rows are to calibrate by, hold them out and do so; classes are held out in proportion."""
        est: Any = self
        if est.calibration_fraction is None:
            est._fit(X, y, sample_weight, False, validation_data)
            return self
        est._validate_params()
        known, count = None if y is None else to_host(y), _num_samples(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(to_host(sample_weight), np.broadcast_to(0.0, (count, 1)))
        if known is not None and _num_samples(known) != count:
            raise DataError(f"y has {_num_samples(known)} rows, but X {count}: expected as many")
        options = {"test_size": est.calibration_fraction, "random_state": check_random_state(est.random_state)}
        if is_classifier(est) and known is not None and type_of_target(known) in ("binary", "multiclass"):
            options["stratify"] = known
        kept, held = train_test_split(np.arange(count), **options)

        def of(values: Any, rows: Any) -> Any:
            if values is None:
                return None
            if foreign(values) is not None:
                return take(values, rows)
            if is_sparse(values):
                return values.tocsr()[rows]
            return _safe_indexing(values if hasattr(values, "__getitem__") else np.asarray(values), rows)

        est._fit(of(X, kept), of(y, kept), of(sample_weight, kept), False, validation_data)
        return self.calibrate(of(X, held), of(y, held))

    def _scores(self) -> Array:
        """Those of the rows that it was calibrated by."""
        check_is_fitted(self)
        if not hasattr(self, "calibration_scores_"):
            raise NotFittedError(
                f"this {type(self).__name__} is not calibrated: fit it with calibration_fraction=0.2, say, or call "
                "calibrate(X, y) with rows that it was not trained on"
            )
        return self.calibration_scores_

    def _drawn(self, X: Any, method: str, samples: int) -> Any:
        """The outputs of so many networks that are drawn by dropout, the same ones every time."""
        count = whole("samples", samples, 1)
        check_is_fitted(self)
        x = self._inputs(X, method)  # type: ignore[attr-defined]
        return networks(self._trainer, x.toarray() if is_sparse(x) else x, count, self._trainer.seed)

    def _said(self, X: Any, method: str) -> tuple[Backend, Loss, Array]:
        """What the network gives, the library of that, and its loss."""
        outputs = self._outputs(X, method)  # type: ignore[attr-defined]
        return backend_of(outputs), self._trainer.loss, outputs


@methods_end_sessions
class Quantities(Calibrated):
    """A regressor that says how far off it may be."""

    n_outputs_: int

    def predict(self, X: Any, *, return_std: bool = False, samples: int = 0) -> Any:
        """The prediction for each row: (rows,), or of several targets (rows, targets); with its deviation if asked for.

        The standard deviation is the predicted one with loss="gaussian_nll", and how far the members of an ensemble
        disagree.  With `samples`, the prediction is the mean of as many networks, which are drawn from this one by its
        dropout, and their spread is part of the deviation (Gal and Ghahramani 2016).
        """
        variance: Array | None
        return_std, samples = flag("return_std", return_std), whole("samples", samples, 0)
        if samples:
            draws = self._drawn(X, "predict", samples)
            loss = self._trainer.loss
            mean, variance = drawn_moments(loss, draws)
        else:
            backend, loss, outputs = self._said(X, "predict")
            mean, variance = moments(backend, loss, outputs)
        if not return_std:
            return self._shaped(mean)
        if variance is None:
            raise OptionError(no_deviation(loss))
        return self._shaped(mean), self._shaped(backend_of(variance).xp.sqrt(variance))

    def predict_quantiles(self, X: Any, quantiles: Any = None) -> Any:
        """Quantiles of each row's target: (rows, quantiles), or of several targets (rows, targets, quantiles).

        With loss="quantile" these are the ones that were learnt, all or those that are named (Koenker and Bassett
        1978), in rising order; with loss="gaussian_nll" any, those of the normal distribution.
        """
        return self._shaped(quantiles_of(*self._said(X, "predict_quantiles"), quantiles))

    def calibrate(self, X: Any, y: Any) -> Self:
        """Find out by rows that it was not trained on how far off it is, for `predict_interval`.

        The scores are kept as `calibration_scores_`, (rows, targets).
        """
        _, loss, outputs = self._said(X, "calibrate")
        known = np.asarray(to_host(y), dtype=np.float64)
        columns = 1 if known.ndim == 1 else known.shape[1]
        if known.ndim > 2 or known.shape[0] != outputs.shape[0] or columns != self.n_outputs_:
            raise ShapeError(
                f"y has the shape {known.shape}; expected ({outputs.shape[0]}, {self.n_outputs_}), a row for each of X"
            )
        if not np.isfinite(known).all():
            raise DataError("y has NaN or infinity, which tells nothing of how far off a prediction is: leave it out")
        target = beside(outputs, known.reshape(-1, columns))
        self.calibration_scores_ = calibration.interval_scores(loss, outputs, target)
        return self

    def predict_interval(self, X: Any, coverage: float = 0.9) -> Any:
        """An interval for each row that holds its target with probability `coverage`: (rows, 2), its ends.

        Of several targets it is (rows, targets, 2), each with that probability.  It needs a calibration, by
        `calibration_fraction` or `calibrate`.  Its width is the same for all rows, that of split conformal prediction
        (Lei et al. 2018); where the network tells a deviation, in proportion to it; and with several quantiles the
        lowest and the highest of them, moved by the same for all rows (conformalized quantile regression, Romano,
        Patterson and Candes 2019).  Infinite where the calibration had too few rows for such a coverage.
        """
        scores, (_, loss, outputs) = self._scores(), self._said(X, "predict_interval")
        return self._shaped(calibration.intervals(loss, outputs, scores, coverage))

    def _shaped(self, values: Array) -> Array:
        """Of one target without the axis of targets."""
        return values[:, 0, ...] if self.n_outputs_ == 1 else values


@methods_end_sessions
class Classes(Calibrated):
    """A classifier that says which classes a row may be of."""

    _labels: Any

    def _probabilities_of(self, outputs: Any) -> Any:
        raise NotImplementedError

    def predict_proba(self, X: Any, *, samples: int = 0, return_std: bool = False) -> Any:
        """The probability of every class, in the order of `classes_`: (rows, classes), and its deviation if asked for.

        With `samples` it is the mean over as many networks, which are drawn from this one by its dropout, and the
        standard deviation is theirs (Gal and Ghahramani 2016).
        """
        return_std, samples = flag("return_std", return_std), whole("samples", samples, 0)
        if not samples:
            if return_std:
                raise OptionError("return_std=True tells how far networks disagree: draw some by samples=50, say")
            return self._probabilities_of(self._said(X, "predict_proba")[2])
        mean: Any = 0.0
        spread: Any = 0.0
        for i, outputs in enumerate(self._drawn(X, "predict_proba", samples)):
            p = self._probabilities_of(outputs)
            change = p - mean
            mean = mean + change * (1.0 / (i + 1))
            spread = spread + change * (p - mean)
        return (mean, backend_of(mean).xp.sqrt(spread * (1.0 / samples))) if return_std else mean

    def calibrate(self, X: Any, y: Any) -> Self:
        """Find out by rows that it was not trained on how likely the true class is thought, for `predict_set`.

        The scores are kept as `calibration_scores_`, (rows, 2): one for "lac" and one for "aps".
        """
        if self._labels.several:
            raise OptionError("calibrate is for one label a row, of which a set holds the true one; y had several")
        p, known = self._probabilities_of(self._said(X, "calibrate")[2]), np.asarray(to_host(y)).reshape(-1)
        unknown = np.setdiff1d(known, self._labels.values)
        if unknown.size:
            raise OptionError(f"y has classes that are not in classes_, {unknown[0]!r} for example")
        if known.shape[0] != p.shape[0]:
            raise ShapeError(f"y has {known.shape[0]} labels; expected {p.shape[0]}, one for each row of X")
        codes = beside(p, np.searchsorted(self._labels.values, known))
        self.calibration_scores_ = calibration.set_scores(p, codes)
        return self

    def predict_set(self, X: Any, coverage: float = 0.9, method: str = "lac") -> Any:
        """Which classes each row may be of: (rows, classes) of True and False, in the order of `classes_`.

        A row's set holds its true class with probability `coverage`.  It needs a calibration, by `calibration_fraction`
        or `calibrate`.  "lac" gives the smallest sets on average, empty ones among them (Sadinle, Lei and Wasserman
        2019); "aps" larger ones for rows that are harder, so that the coverage is nearly the same for easy and hard
        rows (Romano, Sesia and Candes 2020).
        """
        scores, p = self._scores(), self._probabilities_of(self._said(X, "predict_set")[2])
        return calibration.sets(p, scores, coverage, method)
