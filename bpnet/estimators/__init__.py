"""scikit-learn's perceptrons, trained by bpnet.  Nothing else in bpnet imports scikit-learn."""
