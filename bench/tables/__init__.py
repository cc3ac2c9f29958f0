"""``python -m bench tables``: how well, and how fast, tables as they come are learned, by bpnet and by its peers."""
