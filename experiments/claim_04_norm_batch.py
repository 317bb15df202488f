"""Claim 4, the optimizer's batch held at 128: what do small statistics groups alone do?"""

from publish import publish

publish("claim_04_norm_batch")
