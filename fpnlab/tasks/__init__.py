"""One kind of problem in one value: loss, augmentation, evaluation, pictures, metric names."""
