"""What a study tells while it runs: one line a trial, and honest times."""

import dataclasses
import io
import itertools
import time

import pytest
from rich.console import Console

from fpnlab.cli.progress import ProgressDisplay
from fpnlab.config.trials import Trial
from fpnlab.config.validate import validate
from fpnlab.records.run_records import MetricRecord, RunResult


@pytest.fixture
def plan():
    experiment = validate(
        {
            "data": {"kind": "scenes", "image_size": 32},
            "model": {
                "classes": 4,
                "backbone": {"depths": [1], "widths": [4], "norm": {"kind": "none"}},
                "neck": {"min_level": 2, "max_level": 3, "channels": 4},
            },
            "train": {"examples": 100, "batch_size": 4, "learning_rate": 0.1},
        }
    )
    return [Trial(f"bn-seed-{seed}", "BN", 4, seed, experiment) for seed in (0, 1, 2)]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def result(status="done", **fields):
    return RunResult(trial="", arm="BN", axis_value=4, seed=0, status=status, **fields)


def done(value, **fields):
    return result(metrics={"running": {"AP": value, "AP50": None}}, **fields)


RECORD = MetricRecord(step=5, examples=20, examples_per_second=10.0, logs={"loss": 1.25})


def test_each_trial_ends_with_a_line_and_a_found_one_says_so(plan, console):
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        for trial, logs in zip(plan, (True, False, True)):
            listener.begin(trial)
            if logs:
                listener.record(trial, RECORD)
            failed = result("failed", error="OSError: no")
            listener.end(trial, failed if trial.seed == 2 else done(0.5))
    lines = [line for line in console.file.getvalue().splitlines() if "loss" not in line]
    assert lines == [
        "1/3  bn-seed-0  done  AP 50.0  AP50 -  in 0:00",
        "2/3  bn-seed-1  done  AP 50.0  AP50 -  (was finished)",
        "3/3  bn-seed-2  failed: OSError: no",
    ]


def test_the_time_left_counts_the_later_trials_at_the_speed_of_this_one(plan, console):
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        listener.begin(plan[0])
        listener.printed = -1e9
        listener.record(plan[0], RECORD)
    # 80 examples are left of this trial and 200 of the others, ten a second.
    assert "1/3  bn-seed-0  20/100 examples  10/s  loss 1.250  0:28 left" in console.file.getvalue()


def test_found_trials_do_not_make_the_rest_look_fast(plan, console, monkeypatch):
    clock = itertools.count(0.0, 60.0)
    monkeypatch.setattr("fpnlab.cli.progress.time.monotonic", lambda: next(clock))
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        listener.begin(plan[0])
        listener.end(plan[0], done(0.5))
        assert listener.seconds == {}
        listener.begin(plan[1])
        listener.record(plan[1], RECORD)
        listener.end(plan[1], done(0.5))
        assert list(listener.seconds) == [4]


def test_trials_side_by_side_are_one_line_and_share_the_time_left(plan, console):
    with ProgressDisplay(console) as listener:
        listener.start(plan, workers=2)
        listener.begin(plan[0])
        listener.begin(plan[1])
        listener.record(plan[0], RECORD)
        listener.printed = -1e9
        listener.record(plan[1], dataclasses.replace(RECORD, examples=60, examples_per_second=30.0))
        listener.end(plan[1], done(0.5))
        listener.printed = -1e9
        listener.record(plan[0], dataclasses.replace(RECORD, examples=30))
    lines = console.file.getvalue().splitlines()
    # 80 examples at ten a second, 40 at thirty, and 100 at the mean speed: 14.3 s for two.
    assert lines[1] == "0/3 done, 2 running  40 examples/s  0:07 left"
    assert lines[2].startswith("1/3  bn-seed-1  done")
    # What is left: 70 examples, and a whole trial, which took no time when one ended.
    assert lines[3].startswith("2/3  bn-seed-0  30/100 examples  10/s  loss 1.250  0:0")


def test_the_trials_of_a_pack_share_one_worker_and_its_time(plan, console, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fpnlab.cli.progress.time.monotonic", lambda: now[0])
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        listener.printed = -1e9
        for trial in plan[:2]:
            listener.begin(trial)
        listener.record(plan[1], dataclasses.replace(RECORD, examples_per_second=40.0))
        listener.printed = -1e9
        listener.record(plan[0], dataclasses.replace(RECORD, examples_per_second=40.0))
        # Two are at 20 of 100, and another waits: 260 examples at forty a second.
        assert "2 running  40 examples/s  0:06 left" in console.file.getvalue()
        now[0] = 12.0
        listener.end(plan[0], done(0.5, pack=2))
        assert listener.seconds == {4: [6.0]}


def test_no_time_left_is_shown_before_a_step_without_compilation_was_timed(plan, console):
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        listener.begin(plan[0])
        listener.printed = -1e9
        listener.record(plan[0], dataclasses.replace(RECORD, examples_per_second=0.0))
    assert console.file.getvalue() == "1/3  bn-seed-0  20/100 examples  loss 1.250\n"


def test_a_phase_without_records_has_a_line_if_it_lasts(plan, console, monkeypatch):
    monkeypatch.setattr("fpnlab.cli.progress.PHASE_SECONDS", 0.05)
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        listener.phase(plan[0], "measuring whether to train 2 trials together")
        time.sleep(0.2)
        listener.begin(plan[0])
        listener.phase(plan[0], "compiling")
        listener.phase(plan[0], "evaluating")
        listener.timer.join()
        listener.phase(plan[0], "compiling")
        listener.end(plan[0], done(0.5))
        time.sleep(0.2)
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == [
        "1/3  bn-seed-0  measuring whether to train 2 trials together ...",
        "1/3  bn-seed-0  evaluating ...",
    ]
    assert [line.split()[2] for line in lines[2:]] == ["done"]


def test_a_trial_that_is_put_back_is_not_lost_from_the_time_left(plan, console):
    with ProgressDisplay(console) as listener:
        listener.start(plan[:2])
        listener.begin(plan[0])
        listener.pause(plan[0])
        listener.begin(plan[1])
        listener.printed = -1e9
        listener.record(plan[1], RECORD)
    # 80 examples of the second trial and all 100 of the first.
    assert "0:18 left" in console.file.getvalue()


def test_a_trial_that_ended_before_it_was_begun_was_finished(plan, console):
    with ProgressDisplay(console) as listener:
        listener.start(plan)
        listener.end(plan[2], done(0.5))
    assert console.file.getvalue() == "1/3  bn-seed-2  done  AP 50.0  AP50 -  (was finished)\n"
