"""Finished ONNX files, held against each other: the CI gate and the latency comparison."""
