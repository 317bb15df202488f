"""The ledger: the study's trials, in order, with what became of each."""

import pytest

from fpnlab.study.files import RunFolderError
from fpnlab.study.ledger import Ledger

HASHES = {"b": "1", "a": "2", "c": "3"}


def test_statuses_follow_the_trials_in_the_order_of_the_study(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.expect(HASHES)
    assert list(ledger.statuses().items()) == [(name, "waiting") for name in HASHES]
    ledger.begin("b")
    ledger.finish("a", {"status": "diverged", "error": "not finite", "metrics": {}})
    ledger.fail("c", "OSError: no")
    assert ledger.statuses() == {"b": "running", "a": "diverged", "c": "failed"}


def test_a_ledger_is_opened_again_as_it_was(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).expect(HASHES)
    Ledger(path).finish("a", {"status": "done"})
    Ledger(path).expect(HASHES)
    assert Ledger(path).statuses() == {"b": "waiting", "a": "done", "c": "waiting"}


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({**HASHES, "a": "9"}, "1 .* e.g. a"),
        ({**HASHES, "d": "4"}, "1 .* e.g. d"),
        ({"b": "1"}, "2 "),
    ],
)
def test_another_study_is_refused(other, names, tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.expect(HASHES)
    with pytest.raises(RunFolderError, match=f"another study \\({names}.*choose another folder"):
        ledger.expect(other)
    assert set(ledger.statuses()) == set(HASHES)
