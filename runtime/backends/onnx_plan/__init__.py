"""The plan that onnxruntime runs: a model's own file, rewritten at load for a cache of fixed places

No file is written. Functions of the file that a rewrite knows are replaced, the others stand as they are.
"""
