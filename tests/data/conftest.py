"""Fixtures of the tests of data sets."""

import hashlib
import pathlib

import pytest

from fpnlab.records.data_files import DataFile


@pytest.fixture
def fingerprints():
    """The fingerprints of files, computed from what is on disk."""

    def compute(root, names):
        contents = {name: (pathlib.Path(root) / name).read_bytes() for name in names}
        return tuple(
            DataFile(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in sorted(contents.items())
        )

    return compute
