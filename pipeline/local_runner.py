"""`python -m pipeline.local_runner`: the whole pipeline on this machine, from records to a model.

Also the file for `tfx pipeline create --engine=local --pipeline_path=...`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    # Started by path, as by the tfx command line: make Python find packages from the project's folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.configs import PipelineSettings, beam_arguments
from pipeline.local.preflight import METADATA_FILE, check_launch, only_run_in
from pipeline.options import add_pipeline_options, pipeline_settings
from preprocessing.cli import make_parser, own_options, run_command
from preprocessing.errors import PipelineError
from preprocessing.files import without_nan, write_json

if TYPE_CHECKING:
    from pipeline.local.dag_runner import ComponentRun

# The tfx command line passes no options, so they are read from this variable.
OPTIONS_VARIABLE = "AHNET_PIPELINE_OPTIONS"
EXIT_CODE_REFUSED = 2
# Entry for the time of importing TFX among the seconds of the components.
IMPORTS = "imports"

PURPOSE = f"""\
Runs the TFX pipeline on this machine: imports the records of python -m preprocessing.convert (or
converts volumes), validates them (schema, splits against each other, a new span against the one
before) and stops on anomalies; trains the 2D network, then the 3D network from its encoder; scores it
on the evaluation cases; has a server in its own process answer requests with it; and pushes it to
RUN/serving_model/NAME/VERSION (NAME is --pipeline-name) if it reaches the thresholds and is not worse
than the last blessed model. A model card reports the result. Unchanged steps of an earlier run with
the same --output are not executed again, and an interrupted training resumes from its last checkpoint.
Options of Apache Beam (--runner, --direct_num_workers, ...) are passed to every component that runs on
Beam.

Writes RUN/serving_model, RUN/result.json (seconds per component, scores, blessing, pushed model),
RUN/settings.json (networks and trainings, for --config), RUN/pipeline.json (all settings),
RUN/artifacts (outputs of the components) and RUN/metadata.sqlite (for python -m pipeline.lineage).
Exit code: 0 if the model is blessed, {EXIT_CODE_REFUSED} if it is refused, 1 on errors."""

EXAMPLES = (
    "python -m pipeline.local_runner --input records --output run",
    "python -m pipeline.local_runner --input records --output run --preset ct_liver_small",
    "python -m pipeline.local_runner --input records --output run --threshold-liver 0.9 --steps 5000",
    "python -m pipeline.local_runner --volumes lits --task ct_liver --output run",
    "",
    "train on the newest two batches of cases, in records/span-1, records/span-2, ...:",
    "  python -m pipeline.local_runner --input records --spans 2 --warm-start --output run",
    "",
    "by the tfx command line, which reads the options from the environment:",
    f"  export {OPTIONS_VARIABLE}='--input records --output run'",
    "  tfx pipeline create --engine=local --pipeline_path=pipeline/local_runner.py",
    "  tfx run create --engine=local --pipeline_name=ahnet",
)


@dataclass(frozen=True)
class PipelineResult:
    """Result of a run of the pipeline."""

    seconds: dict[str, float]  # wall-clock time by component, in order of execution
    executed: list[str]  # components that were executed; the others were cached
    blessed: bool
    refusals: list[str]  # reasons why the model was not blessed, one sentence each
    thresholds: dict[str, float]  # lowest value that blesses, by score (dice_CLASS)
    # By slice ("overall", "spacing_class=thick", "case_id=...") and name.
    scores: dict[str, dict[str, float]]
    pushed: str | None  # folder of the pushed SavedModel; None if the model was refused
    report: str  # folder of the model card and of the volumes of some cases
    total_seconds: float  # with imports


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.local_runner", PURPOSE, EXAMPLES)
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    add_pipeline_options(parser)
    if argv is None and len(sys.argv) == 1 and OPTIONS_VARIABLE in os.environ:
        argv = shlex.split(os.environ[OPTIONS_VARIABLE])
    arguments, beam_options = parser.parse_known_args(argv)

    def run(arguments: argparse.Namespace) -> int:
        # Trainings and servers in other processes share the GPUs.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        settings = pipeline_settings(arguments)
        check_launch(settings, beam_options, own_options(parser))
        with only_run_in(Path(settings.output)):
            result = run_local(settings, beam_options, debug=arguments.debug)
        if result is None:
            return 0
        print(summary_table(result))
        if result.blessed:
            return 0
        print(f"the model is refused: {'; '.join(result.refusals)}", file=sys.stderr)
        return EXIT_CODE_REFUSED

    return run_command(run, arguments)


def run_local(
    settings: PipelineSettings, beam_options: Sequence[str] = (), *, debug: bool = False
) -> PipelineResult | None:
    """Runs the pipeline in this process, printing a line as each component starts and ends.

    Returns None if the tfx command line only compiles the pipeline. Raises PipelineError if a
    component failed or data validation stopped the run.
    """
    start = time.monotonic()
    output = Path(settings.output)

    from tfx.orchestration.metadata import sqlite_metadata_connection_config

    from pipeline.dag import create_pipeline
    from pipeline.local.dag_runner import ReportingRunner, quiet_logs

    imported = time.monotonic() - start
    write_json(output / "pipeline.json", settings.to_dict() | {"beam": list(beam_options)})
    write_json(output / "settings.json", settings.config.to_dict())
    metadata = sqlite_metadata_connection_config(str(output / METADATA_FILE))
    beam = beam_arguments(beam_options)
    with quiet_logs(debug):
        runner = ReportingRunner()
        runner.run(create_pipeline(settings, metadata=metadata, beam_arguments=beam))
        if not runner.components:
            return None
        result = _result(settings, runner.components, imported, start)
    write_json(output / "result.json", without_nan(asdict(result)))
    return result


def _result(
    settings: PipelineSettings, runs: Sequence[ComponentRun], imported: float, start: float
) -> PipelineResult:
    from pipeline.components.evaluator import read_refusals, read_scores
    from pipeline.components.serving_check import BLESSED, serving_sentence

    components = {run.name: run for run in runs}
    evaluator = components["Evaluator"]
    evaluation = evaluator.outputs["evaluation"].uri
    check = components.get("ServingCheck") or components["InfraValidator"]
    served = check.outputs["blessing"]
    refusals = read_refusals(evaluation)
    if served.get_int_custom_property(BLESSED) != 1:
        refusals.append(serving_sentence(served.uri, False))
    pushed_model = components["Pusher"].outputs["pushed_model"]
    pushed = pushed_model.get_string_custom_property("pushed_destination") or None
    if pushed and not Path(pushed).is_dir():
        pusher = Path(settings.output) / "artifacts" / "Pusher"
        remedy = f"Remove {pusher} to have it pushed again."
        expected = "the model that an earlier run pushed"
        raise PipelineError(pushed, expected, "no such folder", remedy)
    return PipelineResult(
        seconds={IMPORTS: imported} | {run.name: run.seconds for run in runs},
        executed=[run.name for run in runs if run.executed],
        blessed=not refusals
        and evaluator.outputs["blessing"].get_int_custom_property("blessed") == 1,
        refusals=refusals,
        thresholds=settings.score_thresholds(),
        scores=read_scores(evaluation),
        pushed=pushed,
        report=components["Report"].outputs["report"].uri,
        total_seconds=time.monotonic() - start,
    )


def summary_table(result: PipelineResult) -> str:
    """Returns the printed summary: seconds, scores and thresholds, the pushed model."""
    rows = []
    for name, seconds in result.seconds.items():
        note = "" if name in (IMPORTS, *result.executed) else "  (not executed)"
        rows.append(f"{name:<20} {seconds:8.1f} s{note}")
    rows.append(f"{'total':<20} {result.total_seconds:8.1f} s")
    overall = result.scores["overall"]
    rows.append(f"evaluated on {overall['cases']:.0f} cases, Dice per case (mean):")
    dice = [name for name in overall if re.match("dice_(?!global_)", name)]
    for score in (*dice, *(name for name in result.thresholds if name not in dice)):
        least = result.thresholds.get(score)
        against = "" if least is None else f"  threshold {least:g}"
        rows.append(f"  {score.removeprefix('dice_'):<18} {overall[score]:.4f}{against}")
    rows += ["blessed" if result.blessed else "not blessed", f"model card in {result.report}"]
    if result.pushed:
        rows.append(f"pushed to {result.pushed}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
