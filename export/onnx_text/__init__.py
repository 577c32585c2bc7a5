"""Pieces that bodies of ONNX functions share, as text: lines of nodes, an idea a file."""
