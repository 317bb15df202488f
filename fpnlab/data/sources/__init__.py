"""Data sets: generators and readers, one a file."""
