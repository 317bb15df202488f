"""A model to what happens inside of it: statistics, signals, gradients, rates."""
