"""`python -m pipeline.local_runner`: the whole pipeline on this machine, from records to a model.

The same file is what `tfx pipeline create --engine=local --pipeline_path=...` takes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:
    # Started by its path, as the tfx command line does: Python then looks for modules in this
    # folder first, where `pipeline` would be pipeline.py instead of the package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ahnet_tf.train import add_settings, settings_from
from pipeline.settings import RECORD_PATTERN, PipelineSettings
from preprocessing.command import make_parser, run_command
from preprocessing.errors import InputError, PipelineError
from preprocessing.files import write_json
from preprocessing.splits import SPLITS
from preprocessing.tasks import load_task

# Where the tfx command line, which hands no options on, finds them.
OPTIONS_VARIABLE = "AHNET_PIPELINE_OPTIONS"
EXIT_CODE_REFUSED = 2
# Under this name the seconds that importing TFX takes stand among those of the components.
IMPORTS = "imports"

PURPOSE = f"""\
Runs the TFX pipeline on this machine: imports the records that python -m preprocessing.convert
wrote, checks them against the task's schema (and stops on anomalies), trains the 2D network, then
the 3D one from its encoder, scores it on the evaluation cases and, if it reaches the threshold and
is no worse than the last blessed model, pushes it to RUN/serving_model/VERSION.
What hasn't changed since an earlier run with the same --output is not executed again.

Writes RUN/serving_model, RUN/result.json (seconds per component, scores, blessing, pushed model),
RUN/settings.json (networks and trainings; --config takes it back), RUN/pipeline.json (all settings),
RUN/artifacts (what each component made) and RUN/metadata.sqlite (the lineage).
Exit code: 0 the model is blessed, {EXIT_CODE_REFUSED} it is refused, 1 anything else."""

EXAMPLES = (
    "python -m pipeline.local_runner --input records --output run",
    "python -m pipeline.local_runner --input records --output run --preset ct_liver_small",
    "python -m pipeline.local_runner --input records --output run --threshold-liver 0.9 --steps 500",
    "",
    "the same by the tfx command line, which takes the options from the environment:",
    f"  export {OPTIONS_VARIABLE}='--input records --output run'",
    "  tfx pipeline create --engine=local --pipeline_path=pipeline/local_runner.py",
    "  tfx run create --engine=local --pipeline_name=ahnet",
)


@dataclass(frozen=True)
class PipelineResult:
    """How a run of the pipeline ended.

    Attributes:
      seconds: wall-clock seconds by component, in the order of the run.
      executed: the components that were executed; the others' outputs were taken over.
      blessed: the model reached every threshold.
      refusals: what kept it from being blessed, a sentence each.
      thresholds: by score (dice_CLASS), the least value that blesses.
      scores: by slice ("overall", "spacing_class=thick", "case_id=...") and name.
      pushed: folder of the pushed SavedModel; None if it was refused.
      total_seconds: of the whole run, imports included.
    """

    seconds: dict[str, float]
    executed: list[str]
    blessed: bool
    refusals: list[str]
    thresholds: dict[str, float]
    scores: dict[str, dict[str, float]]
    pushed: str | None
    total_seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.local_runner", PURPOSE, EXAMPLES)
    parser.add_argument(
        "--input", required=True, metavar="RECORDS", help="folder with train/, eval/ and task.json"
    )
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--task", help="preset or JSON file (default: task.json of the records)")
    parser.add_argument(
        "--threshold-liver",
        type=float,
        default=0.8,
        metavar="DICE",
        help="mean Dice per case that blesses a model, of the liver or, where the task has none, "
        "of its first class (default: 0.8)",
    )
    parser.add_argument(
        "--pipeline-name", default="ahnet", help="name in the metadata (default: ahnet)"
    )
    add_settings(parser)
    if argv is None and len(sys.argv) == 1 and OPTIONS_VARIABLE in os.environ:
        argv = shlex.split(os.environ[OPTIONS_VARIABLE])
    return run_command(_run, parser.parse_args(argv))


def run_local(settings: PipelineSettings, *, debug: bool = False) -> PipelineResult | None:
    """Runs the pipeline in this process, printing a line as each component starts and ends.

    Returns:
      The result; None where the tfx command line compiles the pipeline without running it.

    Raises:
      InputError: a folder or a split is missing or empty; nothing was launched.
      PipelineError: a component failed; its own message, or that of data validation.
    """
    start = time.monotonic()
    check_input(settings)
    output = Path(settings.output)
    write_json(output / "pipeline.json", settings.to_dict())
    write_json(output / "settings.json", settings.config.to_dict())

    from tfx.orchestration.metadata import sqlite_metadata_connection_config

    from pipeline.evaluation import read_refusals, read_scores
    from pipeline.execution import ReportingRunner, quiet_logs
    from pipeline.pipeline import create_pipeline

    imported = time.monotonic() - start
    with quiet_logs(debug):
        runner = ReportingRunner(announce=lambda line: print(line, flush=True))
        metadata = sqlite_metadata_connection_config(str(output / "metadata.sqlite"))
        runner.run(create_pipeline(settings, metadata=metadata))
        if not runner.components:
            return None
        components = {component.name: component for component in runner.components}
        evaluator = components["Evaluator"]
        refusals = read_refusals(evaluator.outputs["evaluation"])
        pushed = components["Pusher"].properties["pushed_model"].get("pushed_destination")
        if pushed and not Path(pushed).is_dir():
            raise PipelineError(
                pushed,
                "the model that an earlier run pushed",
                "no such folder",
                f"Remove {output / 'artifacts' / 'Pusher'} to have it pushed again.",
            )
        result = PipelineResult(
            seconds={IMPORTS: imported}
            | {component.name: component.seconds for component in runner.components},
            executed=[component.name for component in runner.components if component.executed],
            blessed=evaluator.properties["blessing"]["blessed"] == 1,
            refusals=refusals,
            thresholds={f"dice_{name}": least for name, least in settings.thresholds.items()},
            scores=read_scores(evaluator.outputs["evaluation"]),
            pushed=pushed,
            total_seconds=time.monotonic() - start,
        )
    write_json(output / "result.json", asdict(result))
    return result


def check_input(settings: PipelineSettings) -> None:
    """Refuses a data folder or an output folder that can't work, before anything is launched.

    Raises:
      InputError: a split has no records, or its first one can't be read.
      PipelineError: nothing can be written to the output folder.
    """
    for split in SPLITS:
        folder = Path(settings.input) / split
        files = sorted(folder.glob(RECORD_PATTERN))
        if not any(_has_record(file) for file in files):
            found = f"{len(files)} files without any" if files else "no such file"
            raise InputError(
                folder,
                f"records of the {split} split ({RECORD_PATTERN})",
                found if folder.is_dir() else "no such folder",
                "Write them with python -m preprocessing.convert, with a case for each split.",
            )
    output = Path(settings.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / ".writable").touch()
        (output / ".writable").unlink()
    except OSError as error:
        raise PipelineError(output, "a folder that can be written to", error.strerror) from None


def _run(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    result = run_local(settings, debug=arguments.debug)
    if result is None:
        return 0
    print(summary_table(result))
    if result.blessed:
        return 0
    print(f"the model is refused: {'; '.join(result.refusals)}", file=sys.stderr)
    return EXIT_CODE_REFUSED


def summary_table(result: PipelineResult) -> str:
    """Returns what happened, for people: seconds, scores against thresholds, the pushed model."""
    rows = [
        f"{name:<20} {seconds:8.1f} s" + ("" if ran else "  (not executed)")
        for name, seconds in result.seconds.items()
        for ran in [name == IMPORTS or name in result.executed]
    ]
    rows.append(f"{'total':<20} {result.total_seconds:8.1f} s")
    overall = result.scores["overall"]
    rows.append(f"evaluated on {overall['cases']:.0f} cases, Dice per case (mean):")
    for score, value in overall.items():
        if score.startswith("dice_") and not score.startswith("dice_global_"):
            least = result.thresholds.get(score)
            against = "" if least is None else f"  threshold {least:g}"
            rows.append(f"  {score.removeprefix('dice_'):<18} {value:.4f}{against}")
    rows.append("blessed" if result.blessed else "not blessed")
    if result.pushed:
        rows.append(f"pushed to {result.pushed}")
    return "\n".join(rows)


def _settings(arguments: argparse.Namespace) -> PipelineSettings:
    records = Path(arguments.input).resolve()
    task_file = records / "task.json"
    if arguments.task is None and not task_file.is_file():
        raise InputError(
            records,
            "a folder of records with task.json",
            "no such file" if records.is_dir() else "no such folder",
            "Write records with python -m preprocessing.convert, or name the task with --task.",
        )
    task = load_task(arguments.task or str(task_file))
    decisive = "liver" if "liver" in task.class_names else task.class_names[1]
    return PipelineSettings(
        input=str(records),
        output=str(Path(arguments.output).resolve()),
        task=task,
        config=settings_from(arguments, task),
        thresholds={decisive: arguments.threshold_liver},
        name=arguments.pipeline_name,
    )


def _has_record(file: Path) -> bool:
    import tensorflow as tf

    compression = "GZIP" if file.suffix == ".gz" else ""
    try:
        return bool(list(tf.data.TFRecordDataset(str(file), compression).take(1)))
    except tf.errors.DataLossError as error:
        raise InputError(file, "readable TFRecords", error.message) from None


if __name__ == "__main__":
    sys.exit(main())
