"""The integer kernels: arrays in, arrays out. Knows nothing of models, files or text."""
