"""scikit-learn's perceptrons, trained by bpnet.  Nothing else in bpnet imports scikit-learn."""

from bpnet.errors import MissingExtraError

try:
    import sklearn as sklearn
except ImportError as error:
    raise MissingExtraError("MLPClassifier and MLPRegressor", "scikit-learn", "sklearn") from error
