"""Data sets, one in each file: generators and readers of file formats."""
