"""The command `fpnlab`."""
