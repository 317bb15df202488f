"""Claims 4 and 6: norms over batch sizes, each at a learning rate tuned for it."""

from publish import publish

publish("claim_04_06_batch_size_tuned")
