"""Claims 4 and 6: norms over batch sizes, by the linear learning-rate rule."""

from publish import publish

publish("claim_04_06_batch_size_linear")
