"""Published and own weight files: read safely, named ours, bound to their preprocessing."""
