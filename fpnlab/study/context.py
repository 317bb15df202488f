"""The study context, shared by the runner and the workers, and callbacks for progress."""

import dataclasses
import pathlib

from fpnlab.analysis.tuning import best_value
from fpnlab.config.experiment import Experiment
from fpnlab.config.study import Point
from fpnlab.config.trials import Trial, counted, points, trial
from fpnlab.config.validate import validate
from fpnlab.data.dataset import Dataset
from fpnlab.data.load_data import load
from fpnlab.errors import ConfigError, DataError, RunFolderError, TuningError
from fpnlab.records.run_records import MetricRecord, RunResult, read_result
from fpnlab.records.study_records import read_study_file
from fpnlab.study.ledger import Ledger


class StudyListener:
    """Callbacks for study progress; the base class ignores every event."""

    def start(self, plan: list[Trial], workers: int = 1) -> None:
        """Called first, with the trials in roughly the order in which they will end."""

    def begin(self, trial: Trial) -> None:
        """Called when a trial starts or resumes."""

    def phase(self, trial: Trial, phase: str) -> None:
        """Called when a trial enters a phase without records, such as "evaluating"."""

    def record(self, trial: Trial, record: MetricRecord) -> None:
        """Called with each record of a trial's metrics."""

    def pause(self, trial: Trial) -> None:
        """Called when a trial stops running before its end."""

    def end(self, trial: Trial, result: RunResult) -> None:
        """Called when a trial has ended."""


@dataclasses.dataclass(frozen=True)
class StudyContext:
    """A study with its folder, data and ledger."""

    folder: pathlib.Path
    """The study folder."""
    experiment: Experiment
    """The experiment, with its ``study``."""
    points: dict[str, Point]
    """The trials of the study by name, in order."""
    dataset: Dataset
    """Data of the main trials; tuning trials hold validation images out of it."""
    ledger: Ledger
    """The ledger with the status of each trial."""
    pack: int = 1
    """Largest number of trials that one program may train."""

    @property
    def metric(self) -> str:
        """The metric that the study compares."""
        assert self.experiment.study is not None
        return self.experiment.study.metric

    def run_folder(self, name: str) -> pathlib.Path:
        """Returns the run folder of a trial."""
        return self.folder / run_path(self.points[name])

    def result(self, name: str) -> RunResult:
        """Returns the result of a trial that has ended.

        Raises:
          RunFolderError: The trial has no readable ``result.json``.
        """
        row = self.ledger.rows()[name]
        if row.status == "failed":
            return failed_result(self.points[name], row.error)
        return point_result(self.folder, self.points[name])

    def build(self, name: str) -> Trial:
        """Returns a trial, with the best value of the tuned field if the study tunes one.

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
    """Returns a trial's folder relative to the study's; tuning trials have their own parent."""
    return f"{'tuning' if point.split == 'validation' else 'trials'}/{point.name}"


def failed_result(point: Point, error: str | None) -> RunResult:
    """Returns the result of a trial that raised ``error``."""
    return RunResult(
        trial=point.name,
        arm=point.arm,
        axis_value=point.axis_value,
        seed=point.seed,
        tuned=point.tuned,
        status="failed",
        error=error,
    )


def point_result(folder: pathlib.Path, point: Point) -> RunResult:
    """Returns the result that a trial has stored.

    Args:
      folder: The study folder.
      point: The trial's place in the study.

    Raises:
      RunFolderError: The trial has no readable ``result.json``, or that of another trial.
    """
    path = folder / run_path(point) / "result.json"
    result = read_result(path)
    for name, expected in [
        ("trial", point.name),
        ("arm", point.arm),
        ("axis_value", point.axis_value),
        ("seed", point.seed),
    ]:
        value = getattr(result, name)
        if value != expected:
            raise RunFolderError(
                f"{path}: the result of another trial ({name} is {value!r}, not {expected!r}); "
                "remove it and run the same command again to evaluate the trial again"
            )
    if point.split == "validation" and result.tuned != point.tuned:
        raise RunFolderError(
            f"{path}: the result of another trial (tuned is {result.tuned}, not {point.tuned}); "
            "remove it and run the same command again to evaluate the trial again"
        )
    return result


def open_study(folder: pathlib.Path, pack: int = 1) -> StudyContext:
    """Returns the study in ``folder``, with its data loaded.

    Raises:
      RunFolderError: The folder does not hold a study.
      DataError: Its data cannot be read.
    """
    try:
        experiment = validate(read_study_file(folder / "study.json").config)
        plan = {point.name: point for point in points(experiment)}
    except (RunFolderError, ConfigError) as error:
        raise RunFolderError(
            f"{folder}: not the folder of a study ({error}); give one written by `fpnlab study`"
        ) from None
    try:
        dataset = load(counted(experiment).data)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{folder}: {error}") from error
    return StudyContext(folder, experiment, plan, dataset, Ledger(folder / "ledger.sqlite"), pack)
