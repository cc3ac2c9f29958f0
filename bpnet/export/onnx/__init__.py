"""A program of arrays as an ONNX model."""
