"""Batches to better parameters: objective, schedule, step, fit, checkpoint."""
