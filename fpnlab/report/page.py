"""Pages of studies and runs: self-contained HTML files without scripts or network access."""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Sequence

import jinja2

from fpnlab.records.json_files import JsonObject, replace_file
from fpnlab.records.plain_text import visible
from fpnlab.records.study_records import ClaimBootstrap, ClaimResult, Summary
from fpnlab.report import figure_text, figures, gallery, tables
from fpnlab.report.comparison_matrix import comparison_matrix
from fpnlab.report.data_note import DataNote, data_note
from fpnlab.report.diagnostic_figures import Sketch, run_sketches, study_sketches
from fpnlab.report.draw import class_color
from fpnlab.report.page_parts import Figure, PageParts
from fpnlab.report.study_folder import StudyFiles, TrialFiles, read_study, read_trial
from fpnlab.report.verdict_text import plot_verdict

SIZES = ("AP_small", "AP_medium", "AP_large")


def write_report(study_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a study into its folder, and returns the path of ``report.html``.

    Also writes ``table.csv``, with one row per trial and evaluation, and the figures of the page
    in ``figures/``. The study may be unfinished: the page shows how many of its trials are done.
    Damaged files, and figures that cannot be drawn or written, are left out; the page lists them.

    Raises:
        FileNotFoundError: The folder has no ``study.json``.
        RunFolderError: ``study.json`` is damaged, or the page cannot be written.
    """
    study = read_study(study_dir)
    parts = PageParts(study.folder)
    table = study.folder / "table.csv"
    parts.make("table.csv", lambda: tables.write_csv(study, table), None)
    class_names = study.plan.dataset.class_names
    axis_label, summary = study.axis_label, study.summary
    sketches = parts.make("diagnostics", lambda: study_sketches(study, axis_label), [])
    context: dict[str, object] = {
        "folder": study.folder.resolve().name,
        "data": parts.make("data", lambda: data_note(study.folder, study.plan.config), DataNote()),
        "study": study.plan,
        "axis_label": axis_label,
        "summary": summary,
        "summary_damaged": summary is None and bool(study.problems),
        "state": _state(study),
        "complete": sum(t.status == "done" for t in study.trials) == study.plan.trials,
        "trials": study.trials,
        "failures": [trial for trial in study.trials if trial.status != "done"],
        "losses": parts.make("losses", lambda: _draw_losses(study, parts), []),
        "inside": _draw_sketches(sketches, parts),
        "galleries": parts.make(
            "test images", lambda: _draw_galleries(study, class_names, parts), []
        ),
        "boxes": _has_boxes(study.trials),
        "legend": _legend(class_names),
        "sections": {},
        "claims": [],
        "family": "",
        "matrix": None,
        "doubts": _doubts(study.trials),
        "short_names": _short_names(study.plan.arms),
        "late_seeds": [seed for a in study.plan.additions if a.ended for seed in a.seeds],
    }
    if summary:
        context |= {
            "sections": parts.make("numbers", lambda: _draw_summary(summary, parts), {}),
            "claims": parts.make("verdicts", lambda: _draw_verdicts(summary, parts), []),
            "family": parts.make("family of tests", lambda: tables.family_note(summary), ""),
            "matrix": parts.make("matrix of arms", lambda: comparison_matrix(summary), None),
        }
    parts.left_out += [*study.problems, *(p for trial in study.trials for p in _problems(trial))]
    return _write_page(study.folder, "study.html", context, parts)


def write_run_report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run into its folder, and returns the path of ``report.html``.

    Without a ``result.json``, classes are numbered instead of named. Damaged files, and figures
    that cannot be drawn or written, are left out; the page lists them.

    Raises:
        FileNotFoundError: The folder holds neither a result nor metrics.
        RunFolderError: The page cannot be written.
    """
    run_dir = pathlib.Path(run_dir)
    trial = read_trial(run_dir)
    if trial.status == "unfinished" and not trial.records:
        raise FileNotFoundError(
            f"{run_dir}: not the folder of a run (result.json and metrics.jsonl are missing); give "
            "a folder written by `fpnlab train`"
        )
    parts = PageParts(run_dir)
    class_names = trial.result.class_names if trial.result else []
    config = parts.make("config", lambda: trial.config, {})
    sketches = parts.make("diagnostics", lambda: run_sketches(trial), [])
    context: dict[str, object] = {
        "folder": _folder_name(run_dir),
        "data": parts.make("data", lambda: data_note(run_dir, _experiment(config)), DataNote()),
        "question": _question(config),
        "trial": trial,
        "class_names": class_names,
        "pictures": _draw_run(trial, class_names, parts),
        "inside": _draw_sketches(sketches, parts),
        "boxes": _has_boxes([trial]),
        "legend": _legend(class_names),
        "evaluations": trial.result.metrics if trial.result else {},
        "doubts": _doubts([trial]),
        "config": config,
        "environment": parts.make("environment", lambda: trial.environment, {}),
    }
    parts.left_out += _problems(trial)
    return _write_page(run_dir, "run.html", context, parts)


def _write_page(
    folder: pathlib.Path, template: str, context: dict[str, object], parts: PageParts
) -> pathlib.Path:
    """Returns the path of the page after writing it."""
    page = folder / "report.html"
    # The template lists what was left out after its sections, some of which may be left out, too.
    context |= {"part": parts.section, "left_out": parts.left_out}
    text = _environment().get_template(template).render(context)
    replace_file(page, text)
    return page


def _problems(trial: TrialFiles) -> list[str]:
    """Returns the files of a trial that the page lacks, each with the reason."""
    return [*([trial.error] if trial.status == "unreadable" else []), *trial.problems]


def _folder_name(run_dir: pathlib.Path) -> str:
    """Returns the name of a run's folder; that of a trial follows the name of its study."""
    folder = run_dir.resolve()
    if folder.parent.name in ("trials", "tuning"):
        return f"{folder.parent.parent.name}/{folder.name}"
    return folder.name


def _experiment(config: JsonObject) -> JsonObject:
    """Returns the resolved experiment in a ``config.json``; empty if it is damaged."""
    experiment = config.get("experiment")
    return experiment if isinstance(experiment, dict) else {}


def _question(config: JsonObject) -> str:
    question = _experiment(config).get("question")
    return question if isinstance(question, str) else ""


def _short_names(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the arms that have another name in figures, with that name."""
    return [(short, arm) for short, arm in zip(figure_text.names(arms), arms) if short != arm]


def _doubts(trials: Sequence[TrialFiles]) -> list[str]:
    """Returns the reasons why numbers may be wrong, each with the number of its trials."""
    found = Counter(doubt for t in trials if (doubt := t.doubt))
    many = len(trials) > 1
    return [f"{n} of {len(trials)} trials: {why}" if many else why for why, n in found.items()]


def _groups(norm_batch: dict[str, int | None]) -> int | str:
    sizes = tables.group_sizes(norm_batch)
    return "-" if sizes is None else sizes


def _draw_sketches(sketches: Sequence[Sketch], parts: PageParts) -> list[Figure]:
    return [figure for s in sketches for figure in parts.figure(s.name, s.draw, s.caption)]


def _draw_summary(summary: Summary, parts: PageParts) -> dict[str, object]:
    """Returns the figures and tables of the page that come from the summary."""
    metric, arms = summary.metric, summary.arms
    measured = tables.metric_names(summary)
    key = parts.figure(
        metric,
        lambda file: figures.plot_metric(summary, metric, file),
        f"{metric} with running statistics: mean, 95 % confidence interval, dots for seeds.",
    )
    if len(arms) > 1:
        caption = f"Difference to {arms[0]}, paired by seed. A confidence interval that includes"
        key += parts.figure(
            "difference",
            lambda file: figures.plot_differences(summary, file),
            f"{caption} zero leaves the order of the arms undecided.",
        )
    more = []
    if "AP50" in measured and metric != "AP50":
        more += parts.figure(
            "AP50",
            lambda file: figures.plot_metric(summary, "AP50", file),
            "AP50: average precision of the same detectors at an IoU threshold of 0.5.",
        )
    for arm in dict.fromkeys(row.arm for row in summary.gains):
        more += parts.figure(
            f"evaluations_{arm}",
            lambda file, arm=arm: figures.plot_evaluations(summary, arm, file),
            f"The same weights of {arm}, evaluated with running, precise and batch statistics.",
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
    figures: list[Figure]
    """Estimates of its rules with confidence intervals, unless they could not be drawn."""
    bootstrap: list[list[ClaimBootstrap]]
    """Bootstrap intervals by rule."""


def _draw_verdicts(summary: Summary, parts: PageParts) -> list[ClaimSection]:
    """Returns the verdicts, each with its figure."""
    caption = "Estimates with confidence intervals; dots are seeds; the claimed range is shaded."
    return [
        ClaimSection(
            verdict,
            parts.figure(
                f"claim_{i + 1}",
                lambda file, verdict=verdict: plot_verdict(verdict, file),
                caption,
            ),
            [tables.claim_bootstrap(summary, i, j) for j in range(len(verdict.outcomes))],
        )
        for i, verdict in enumerate(summary.verdicts)
    ]


def _draw_losses(study: StudyFiles, parts: PageParts) -> list[Figure]:
    trials = [trial for trial in study.trials if trial.result is not None]
    limits = figures.loss_limits(trials)
    values, label = study.plan.axis_values, study.axis_label
    losses = []
    for arm, short in zip(study.plan.arms, figure_text.names(study.plan.arms)):
        own = [trial for trial in trials if trial.result and trial.result.arm == arm]
        losses += parts.figure(
            f"loss_{arm}",
            lambda file, own=own, title=f"{short}: training loss": figures.plot_losses(
                own, values, label, title, file, limits
            ),
            f"Training loss of {arm}, one line per trial, averaged over 5 % of the records.",
        )
    return losses


def _draw_galleries(
    study: StudyFiles, class_names: Sequence[str], parts: PageParts
) -> list[Figure]:
    galleries = []
    for i, choice in enumerate(gallery.choose(study), start=1):
        galleries += parts.figure(
            f"gallery_{i}",
            lambda file, choice=choice: gallery.draw_gallery(choice.trial, class_names, file),
            f"{choice.reason}. Trial {choice.trial.name}.",
        )
    return galleries


def _draw_run(
    trial: TrialFiles, class_names: Sequence[str], parts: PageParts
) -> dict[str, list[Figure]]:
    drawn = {}
    if trial.records:
        drawn["loss"] = parts.figure(
            "loss",
            lambda file: figures.plot_run_losses(trial, file),
            "Training loss and its parts, averaged over 5 % of the records.",
        )
    if trial.gallery is not None:
        drawn["gallery"] = parts.figure(
            "gallery",
            lambda file: gallery.draw_gallery(trial, class_names, file, pictures=6, columns=3),
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
        # Text of a user is shown as it is, without what would reorder the text beside it.
        finalize=lambda value: visible(value, keep="\n\t") if type(value) is str else value,
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
