"""A module becomes a better module: steps, optimisers, losses, checkpoints."""
