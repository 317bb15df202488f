"""Summaries, verdicts and findings from the results of trials."""
