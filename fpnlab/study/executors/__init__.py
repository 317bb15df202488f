"""Ways to start workers of a study: processes of this machine, Ray, Slurm.

An executor runs the same command wherever it runs it; what a worker does is `fpnlab.study.worker`.
"""
