"""``python -m bench estimators``: fit, predict, score and memory beside scikit-learn's estimators and others."""
