"""Studies: grids of trials, run by workers that share a ledger."""
