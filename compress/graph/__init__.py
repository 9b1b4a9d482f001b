"""The ONNX side of the border: exporting, executing, training a graph."""
