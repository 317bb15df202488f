"""Typed records of the files that runs and studies write, each with a reader and a writer."""
