"""Everything that the runner and the workers of a study share, and callbacks for its progress."""

import dataclasses
import pathlib

from fpnlab.analysis.tuning import best_value
from fpnlab.config.experiment import Experiment
from fpnlab.config.study import Point
from fpnlab.config.trials import Trial, counted, points, trial
from fpnlab.config.validate import validate
from fpnlab.data.dataset import Dataset
from fpnlab.data.load_data import load
from fpnlab.errors import ConfigError, RunFolderError, TuningError
from fpnlab.records.run_records import MetricRecord, RunResult, read_result
from fpnlab.records.study_records import read_study_file
from fpnlab.study.ledger import Ledger


class StudyListener:
    """Callbacks for study progress; the base class ignores every event."""

    def start(self, plan: list[Trial], workers: int = 1) -> None:
        """Called first, with the trials in about the order of their ends."""

    def begin(self, trial: Trial) -> None:
        """Called when a trial starts or goes on."""

    def record(self, trial: Trial, record: MetricRecord) -> None:
        """Called with each record of a trial's log."""

    def pause(self, trial: Trial) -> None:
        """Called when a trial is no longer run, and has not ended."""

    def end(self, trial: Trial, result: RunResult) -> None:
        """Called when a trial has ended."""


@dataclasses.dataclass(frozen=True)
class StudyContext:
    """A study in its folder."""

    folder: pathlib.Path
    """The folder."""
    experiment: Experiment
    """With its ``study``."""
    points: dict[str, Point]
    """The study's trials by name, in their order."""
    dataset: Dataset
    """Data of the trials that count."""
    ledger: Ledger
    """State of the trials."""
    pack: int = 1
    """Most trials that one program may train, where that pays."""

    @property
    def metric(self) -> str:
        """The metric that is compared."""
        assert self.experiment.study is not None
        return self.experiment.study.metric

    def run_folder(self, name: str) -> pathlib.Path:
        """Returns the folder of a trial."""
        return self.folder / run_path(self.points[name])

    def result(self, name: str) -> RunResult:
        """Returns the result of a trial that has ended; raises RunFolderError without one."""
        row = self.ledger.rows()[name]
        if row.status == "failed":
            return self.failed_result(name, row.error)
        return read_result(self.run_folder(name) / "result.json")

    def failed_result(self, name: str, error: str | None) -> RunResult:
        """Returns the result of a trial that raised."""
        point = self.points[name]
        return RunResult(
            trial=name,
            arm=point.arm,
            axis_value=point.axis_value,
            seed=point.seed,
            tuned=point.tuned,
            status="failed",
            error=error,
        )

    def build(self, name: str) -> Trial:
        """Returns a trial, with the best value of the tuned field where there is one.

        Raises:
          TuningError: A tuning trial of its arm and axis value failed, or none has a score.
        """
        point, study = self.points[name], self.experiment.study
        if study is None or study.tune is None or point.split == "validation":
            return trial(self.experiment, point)
        place = (point.arm, point.axis_value)
        names = [
            other.name
            for other in self.points.values()
            if other.split == "validation" and (other.arm, other.axis_value) == place
        ]
        results = [self.result(other) for other in names]
        if failed := [result for result in results if result.status == "failed"]:
            raise TuningError(f"the tuning trial {failed[0].trial} failed: {failed[0].error}")
        return trial(self.experiment, point, best_value(study.metric, results))


def run_path(point: Point) -> str:
    """Returns the folder of a trial in that of its study; trials that tune are apart."""
    return f"{'tuning' if point.split == 'validation' else 'trials'}/{point.name}"


def open_study(folder: pathlib.Path, pack: int = 1) -> StudyContext:
    """Returns a study that was begun in ``folder``, with its data loaded.

    Raises:
      RunFolderError: There is no study in it.
    """
    try:
        experiment = validate(read_study_file(folder / "study.json").config)
        plan = {point.name: point for point in points(experiment)}
    except (RunFolderError, ConfigError) as error:
        raise RunFolderError(
            f"{folder}: no study has begun in it ({error}); give the folder of one"
        ) from None
    dataset = load(counted(experiment).data)
    return StudyContext(folder, experiment, plan, dataset, Ledger(folder / "ledger.sqlite"), pack)
