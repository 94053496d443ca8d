"""A file becomes a tensor: reading, sampling, transforms and preprocessing."""
