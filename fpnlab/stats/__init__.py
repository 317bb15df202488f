"""Samples to intervals and tests."""
