"""Executors, which start the workers of a study as local processes, Ray tasks or Slurm jobs.

Every executor runs the same command, whose work is in `fpnlab.study.worker`.
"""
