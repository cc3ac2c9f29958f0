"""``python -m bench catalogue``: a step of a small network around each entry of the catalogue, beside peers."""
