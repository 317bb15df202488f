"""A grid of trials to a ledger, statistics and findings."""
