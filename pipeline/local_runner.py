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
from typing import TYPE_CHECKING

if not __package__:
    # Started by its path, as the tfx command line does: Python then looks for modules in this
    # folder first, where `pipeline` would be pipeline.py instead of the package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.beam_options import beam_arguments
from pipeline.configs import PipelineSettings
from pipeline.local.metadata_store import METADATA_FILE
from pipeline.local.one_run import only_run_in
from pipeline.local.preflight import check_launch
from pipeline.options import add_pipeline_options, pipeline_settings
from preprocessing.cli import make_parser, own_options, run_command
from preprocessing.errors import PipelineError
from preprocessing.files import without_nan, write_json

if TYPE_CHECKING:
    from pipeline.local.dag_runner import ComponentRun

# Where the tfx command line, which hands no options on, finds them.
OPTIONS_VARIABLE = "AHNET_PIPELINE_OPTIONS"
EXIT_CODE_REFUSED = 2
# Under this name the seconds that importing TFX takes stand among those of the components.
IMPORTS = "imports"

PURPOSE = f"""\
Runs the TFX pipeline on this machine: imports the records that python -m preprocessing.convert
wrote, or converts volumes itself; checks them against the task's schema, the splits against each
other and a new span against the one before (and stops on anomalies); trains the 2D network, then the
3D one from its encoder; scores it on the evaluation cases; lets a server in a process of its own
answer with it; and, if it reaches the threshold and is no worse than the last blessed model, pushes
it to RUN/serving_model/VERSION. A model card says what came of it. What hasn't changed since an
earlier run with the same --output is not executed again; a training that was killed goes on from its
last checkpoint. Options of Apache Beam (--runner, --direct_num_workers, ...) are handed on to every
component that runs on Beam.

Writes RUN/serving_model, RUN/result.json (seconds per component, scores, blessing, pushed model),
RUN/settings.json (networks and trainings; --config takes it back), RUN/pipeline.json (all settings),
RUN/artifacts (what each component made) and RUN/metadata.sqlite (the lineage, which
python -m pipeline.lineage shows).
Exit code: 0 the model is blessed, {EXIT_CODE_REFUSED} it is refused, 1 anything else."""

EXAMPLES = (
    "python -m pipeline.local_runner --input records --output run",
    "python -m pipeline.local_runner --input records --output run --preset ct_liver_small",
    "python -m pipeline.local_runner --input records --output run --threshold-liver 0.9 --steps 500",
    "python -m pipeline.local_runner --volumes lits --task ct_liver --output run",
    "",
    "batches of cases in records/span-1, records/span-2, ..., the newest two learned from:",
    "  python -m pipeline.local_runner --input records --spans 2 --warm-start --output run",
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
      report: folder of the model card and the scores of whole cases.
      total_seconds: of the whole run, imports included.
    """

    seconds: dict[str, float]
    executed: list[str]
    blessed: bool
    refusals: list[str]
    thresholds: dict[str, float]
    scores: dict[str, dict[str, float]]
    pushed: str | None
    report: str
    total_seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.local_runner", PURPOSE, EXAMPLES)
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    add_pipeline_options(parser)
    if argv is None and len(sys.argv) == 1 and OPTIONS_VARIABLE in os.environ:
        argv = shlex.split(os.environ[OPTIONS_VARIABLE])
    arguments, beam_options = parser.parse_known_args(argv)

    def run(arguments: argparse.Namespace) -> int:
        # Trainings and servers in processes of their own need memory of the same GPUs.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        settings = pipeline_settings(arguments)
        check_launch(settings, beam_options, own_options(parser))
        with only_run_in(Path(settings.output)):
            result = run_local(settings, beam_options, debug=arguments.debug)
        return 0 if result is None else _tell(result)

    return run_command(run, arguments)


def run_local(
    settings: PipelineSettings, beam_options: Sequence[str] = (), *, debug: bool = False
) -> PipelineResult | None:
    """Runs the pipeline in this process, printing a line as each component starts and ends.

    Returns:
      The result; None where the tfx command line compiles the pipeline without running it.

    Raises:
      PipelineError: a component failed; its own message, or that of data validation.
    """
    start = time.monotonic()
    output = Path(settings.output)
    write_json(output / "pipeline.json", settings.to_dict() | {"beam": list(beam_options)})
    write_json(output / "settings.json", settings.config.to_dict())

    from tfx.orchestration.metadata import sqlite_metadata_connection_config

    from pipeline.dag import create_pipeline
    from pipeline.local.dag_runner import ReportingRunner, quiet_logs

    imported = time.monotonic() - start
    with quiet_logs(debug):
        runner = ReportingRunner(announce=lambda line: print(line, flush=True))
        runner.run(
            create_pipeline(
                settings,
                metadata=sqlite_metadata_connection_config(str(output / METADATA_FILE)),
                beam_arguments=beam_arguments(beam_options),
            )
        )
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
    evaluation = evaluator.outputs["evaluation"]
    check = components.get("ServingCheck") or components["InfraValidator"]
    refusals = read_refusals(evaluation)
    if check.properties["blessing"].get(BLESSED) != 1:
        refusals.append(serving_sentence(check.outputs["blessing"], False))
    pushed = components["Pusher"].properties["pushed_model"].get("pushed_destination")
    if pushed and not Path(pushed).is_dir():
        raise PipelineError(
            pushed,
            "the model that an earlier run pushed",
            "no such folder",
            f"Remove {Path(settings.output) / 'artifacts' / 'Pusher'} to have it pushed again.",
        )
    return PipelineResult(
        seconds={IMPORTS: imported} | {run.name: run.seconds for run in runs},
        executed=[run.name for run in runs if run.executed],
        blessed=not refusals and evaluator.properties["blessing"]["blessed"] == 1,
        refusals=refusals,
        thresholds=settings.score_thresholds(),
        scores=read_scores(evaluation),
        pushed=pushed,
        report=components["Report"].outputs["report"],
        total_seconds=time.monotonic() - start,
    )


def _tell(result: PipelineResult) -> int:
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
    rows.append(f"model card in {result.report}")
    if result.pushed:
        rows.append(f"pushed to {result.pushed}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
