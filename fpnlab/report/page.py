"""Pages of studies and runs: self-contained HTML files without scripts or network access."""

import base64
import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jinja2

from fpnlab import compiler
from fpnlab.records.study_records import ClaimBootstrap, ClaimResult, Summary
from fpnlab.report import figures, gallery, tables
from fpnlab.report.comparison_matrix import comparison_matrix
from fpnlab.report.diagnostic_figures import Sketch, run_sketches, study_sketches
from fpnlab.report.draw import class_color
from fpnlab.report.study_folder import StudyFiles, TrialFiles, read_study, read_trial
from fpnlab.report.verdict_text import plot_verdict

SIZES = ("AP_small", "AP_medium", "AP_large")


class Figure(NamedTuple):
    """An image on the page."""

    source: str
    """The PNG as a data URI."""
    alt: str
    """Alternative text."""
    caption: str
    """Caption."""


def write_report(study_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a study into its folder, and returns the path of ``report.html``.

    Also writes ``table.csv``, with one row per trial and evaluation, and the figures of the page
    in ``figures/``. The study may be unfinished: the page shows how many of its trials are done.

    Raises:
        FileNotFoundError: The folder has no ``study.json``.
        RunFolderError: A file is damaged.
    """
    study = read_study(study_dir)
    folder = study.folder / "figures"
    folder.mkdir(exist_ok=True)
    tables.write_csv(study, study.folder / "table.csv")
    class_names = study.plan.dataset.class_names
    page = study.folder / "report.html"
    axis_label = study.axis_label
    context = {
        "study": study.plan,
        "axis_label": axis_label,
        "summary": study.summary,
        "state": _state(study),
        "complete": sum(t.status == "done" for t in study.trials) == study.plan.trials,
        "trials": study.trials,
        "failures": [trial for trial in study.trials if trial.status != "done"],
        "losses": _draw_losses(study, folder),
        "inside": _draw_sketches(study_sketches(study, axis_label), folder),
        "galleries": _draw_galleries(study, class_names, folder),
        "boxes": _has_boxes(study.trials),
        "legend": _legend(class_names),
        "sections": _draw_summary(study.summary, folder) if study.summary else {},
        "matrix": comparison_matrix(study.summary) if study.summary else None,
        "claims": _draw_verdicts(study.summary, folder) if study.summary else [],
        "doubts": _doubts(study.trials),
        "family": tables.family_note(study.summary) if study.summary else "",
    }
    page.write_text(_environment().get_template("study.html").render(context), encoding="utf-8")
    return page


def write_run_report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run into its folder, and returns the path of ``report.html``.

    Without a ``result.json``, classes are numbered instead of named.

    Raises:
        FileNotFoundError: The folder holds neither a result nor metrics.
        RunFolderError: ``metrics.jsonl`` is damaged before its last line.
    """
    run_dir = pathlib.Path(run_dir)
    trial = read_trial(run_dir)
    if trial.status == "unfinished" and not trial.records:
        raise FileNotFoundError(
            f"{run_dir}: not the folder of a run (result.json and metrics.jsonl are missing); give "
            "a folder written by `fpnlab train`"
        )
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    class_names = trial.result.class_names if trial.result else []
    context = {
        "trial": trial,
        "class_names": class_names,
        "pictures": _draw_run(trial, class_names, folder),
        "inside": _draw_sketches(run_sketches(trial), folder),
        "boxes": _has_boxes([trial]),
        "legend": _legend(class_names),
        "evaluations": trial.result.metrics if trial.result else {},
        "doubts": _doubts([trial]),
    }
    page = run_dir / "report.html"
    page.write_text(_environment().get_template("run.html").render(context), encoding="utf-8")
    return page


def _doubts(trials: Sequence[TrialFiles]) -> list[str]:
    """Returns the reasons why numbers may be wrong, each with the number of its trials."""
    found = Counter(doubt for t in trials if (doubt := compiler.doubt(t.environment)))
    many = len(trials) > 1
    return [f"{n} of {len(trials)} trials: {why}" if many else why for why, n in found.items()]


def _groups(norm_batch: dict[str, int | None]) -> int | str:
    sizes = tables.group_sizes(norm_batch)
    return "-" if sizes is None else sizes


def _embed(path: pathlib.Path, draw: Callable[[pathlib.Path], None], caption: str) -> Figure:
    draw(path)
    data = base64.b64encode(path.read_bytes()).decode()
    return Figure(f"data:image/png;base64,{data}", caption, caption)


def _draw_sketches(sketches: Sequence[Sketch], folder: pathlib.Path) -> list[Figure]:
    return [_embed(folder / f"{s.name}.png", s.draw, s.caption) for s in sketches]


def _draw_summary(summary: Summary, folder: pathlib.Path) -> dict[str, object]:
    """Returns the figures and tables of the page that come from the summary."""
    metric, arms = summary.metric, summary.arms
    measured = tables.metric_names(summary)
    key = [
        _embed(
            folder / f"{metric}.png",
            lambda path: figures.plot_metric(summary, metric, path),
            f"{metric} with running statistics: mean, 95 % confidence interval, dots for seeds.",
        )
    ]
    if len(arms) > 1:
        caption = f"Difference to {arms[0]}, paired by seed. A confidence interval that includes"
        key.append(
            _embed(
                folder / "difference.png",
                lambda path: figures.plot_differences(summary, path),
                f"{caption} zero leaves the order of the arms undecided.",
            )
        )
    more = []
    if "AP50" in measured and metric != "AP50":
        more.append(
            _embed(
                folder / "AP50.png",
                lambda path: figures.plot_metric(summary, "AP50", path),
                "AP50: average precision of the same detectors at an IoU threshold of 0.5.",
            )
        )
    for arm in dict.fromkeys(row.arm for row in summary.gains):
        more.append(
            _embed(
                folder / f"evaluations_{_slug(arm)}.png",
                lambda path, arm=arm: figures.plot_evaluations(summary, arm, path),
                f"The same weights of {arm}, evaluated with running, precise and batch statistics.",
            )
        )
    means = {name: tables.means_by_axis(summary, name) for name in measured}
    differences = [
        row for row in summary.differences if (row.metric, row.evaluation) == (metric, "running")
    ]
    return {
        "key": key,
        "more": more,
        "main": means.get(metric, []),
        "differences": differences,
        "bootstrap": bool(summary.claim_bootstrap) or any(row.bootstrap for row in differences),
        "sizes": [
            dataclasses.replace(line, evaluation=name.removeprefix("AP_"))
            for name in SIZES
            for line in means.get(name, [])
            if line.evaluation in ("", "running")
        ],
        "others": {name: means[name] for name in measured if name != metric},
    }


@dataclasses.dataclass(frozen=True)
class ClaimSection:
    """A claim on the page."""

    result: ClaimResult
    """The verdict."""
    figure: Figure
    """Estimates of its rules with confidence intervals."""
    bootstrap: list[list[ClaimBootstrap]]
    """Bootstrap intervals by rule."""


def _draw_verdicts(summary: Summary, folder: pathlib.Path) -> list[ClaimSection]:
    """Returns the verdicts, each with its figure."""
    caption = "Estimates with confidence intervals; dots are seeds; the claimed range is shaded."
    return [
        ClaimSection(
            verdict,
            _embed(
                folder / f"claim_{i + 1}.png",
                lambda path, verdict=verdict: plot_verdict(verdict, path),
                caption,
            ),
            [tables.claim_bootstrap(summary, i, j) for j in range(len(verdict.outcomes))],
        )
        for i, verdict in enumerate(summary.verdicts)
    ]


def _draw_losses(study: StudyFiles, folder: pathlib.Path) -> list[Figure]:
    trials = [trial for trial in study.trials if trial.result is not None]
    limits = figures.loss_limits(trials)
    values, label = study.plan.axis_values, study.axis_label
    losses = []
    for arm in study.plan.arms:
        own = [trial for trial in trials if trial.result and trial.result.arm == arm]
        losses.append(
            _embed(
                folder / f"loss_{_slug(arm)}.png",
                lambda path, own=own, arm=arm: figures.plot_losses(
                    own, values, label, f"{arm}: training loss", path, limits
                ),
                f"Training loss of {arm}, one line per trial, averaged over 5 % of the records.",
            )
        )
    return losses


def _draw_galleries(
    study: StudyFiles, class_names: Sequence[str], folder: pathlib.Path
) -> list[Figure]:
    return [
        _embed(
            folder / f"gallery_{i}.png",
            lambda path, choice=choice: gallery.draw_gallery(choice.trial, class_names, path),
            f"{choice.reason}. Trial {choice.trial.name}.",
        )
        for i, choice in enumerate(gallery.choose(study), start=1)
    ]


def _draw_run(
    trial: TrialFiles, class_names: Sequence[str], folder: pathlib.Path
) -> dict[str, Figure]:
    drawn = {}
    if trial.records:
        drawn["loss"] = _embed(
            folder / "loss.png",
            lambda path: figures.plot_run_losses(trial, path),
            "Training loss and its parts, averaged over 5 % of the records.",
        )
    if trial.gallery is not None:
        drawn["gallery"] = _embed(
            folder / "gallery.png",
            lambda path: gallery.draw_gallery(trial, class_names, path, pictures=6, columns=3),
            "Test images, each with as many predictions as ground-truth boxes."
            if _has_boxes([trial])
            else "Test images, each with its class, and the predicted class with its probability.",
        )
    return drawn


def _state(study: StudyFiles) -> str:
    """Returns the number of trials by status as a sentence."""
    statuses = [trial.status for trial in study.trials]
    planned = study.plan.trials
    waiting = planned - len(statuses)
    parts = [
        f"{statuses.count(status)} {status}"
        for status in dict.fromkeys(statuses)
        if status != "done"
    ]
    parts += [f"{waiting} not started"] if waiting > 0 else []
    sentence = f"{statuses.count('done')} of {planned} trials are done"
    return f"{sentence}; {', '.join(parts)}." if parts else f"{sentence}."


def _legend(class_names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, class_color(i)) for i, name in enumerate(class_names)]


def _has_boxes(trials: Sequence[TrialFiles]) -> bool:
    """Returns whether the models are detectors, judging by their metrics."""
    return any(
        "AP" in numbers
        for trial in trials
        if trial.result is not None
        for numbers in trial.result.metrics.values()
    )


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _plain(value: object) -> object:
    """Returns a record as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "mean": tables.mean_and_half_width,
        "bounds": tables.bounds_note,
        "points": _points,
        "fixed": lambda value, digits: "-" if value is None else f"{value:z,.{digits}f}",
        "groups": _groups,
        "count": lambda value: "-" if value is None else f"{value:,}",
        "speed": tables.examples_per_second,
        "reason": tables.reason,
        "json": lambda value: json.dumps(_plain(value), indent=2, ensure_ascii=False),
    }
    return environment
