"""Published weight files, one module per family of networks; `marey.weights.published` finds them."""
