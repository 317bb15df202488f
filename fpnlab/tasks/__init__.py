"""Tasks: loss, augmentation, evaluation, pictures and metric names of each kind of problem."""
