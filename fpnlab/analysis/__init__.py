"""Results of trials to summaries, verdicts and findings."""
