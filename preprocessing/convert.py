"""Converts volumes on disk into TFRecords of patches, as a Beam job.

OUTPUT/train/CASE-00000.tfrecord   foreground-balanced patches of the training cases
OUTPUT/eval/CASE-00000.tfrecord    exact tilings of the evaluation cases
OUTPUT/task.json                   the task, for training and serving
OUTPUT/manifest.json               every case found: converted, or rejected with the reason

The same input, task, seed and settings give the same bytes with any runner and number of workers.
Everything is written to a hidden folder beside OUTPUT, which is renamed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from preprocessing import cli
from preprocessing.errors import PipelineError, SettingsError
from preprocessing.records.splits import EVAL_FRACTION, load_splits, split_by_hash
from preprocessing.settings import check_seed
from preprocessing.tasks import Task, load_task

if TYPE_CHECKING:
    from preprocessing.datasets.case import Case


def convert(
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    task: Task | str,
    *,
    seed: int = 0,
    splits_file: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    shard_mib: int = 128,
    allow: Collection[str] = (),
    overwrite: bool = False,
    resume: bool = False,
    beam_options: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Converts all cases below some folders; the module's docstring lists what is written.

    Args:
      inputs: one or several data-set folders, see `preprocessing.datasets.discovery`.
      output: the new folder, which may be an address on one of Beam's file systems.
      task: a task, or what `load_task` takes.
      splits_file: see `preprocessing.records.splits.load_splits`; cases that it does not name are
        rejected.
      eval_fraction: without a splits file, the share of patients for evaluation, see
        `preprocessing.records.splits.split_by_hash`.
      shard_mib: largest size of a shard file in MiB.
      allow: irregularities to accept, names of `preprocessing.errors.ALLOWANCES`.
      resume: continue a stopped run with the same settings; its intact finished cases are kept.
      beam_options: options of Beam's command line.

    Returns the manifest; if every case was rejected, nothing else was written. Raises InputError if
    an input is missing or there is no case, SettingsError if the output exists, another run is writing
    to it, or a setting is invalid or differs from that of the run to resume, and PipelineError if
    the Beam job failed; `resume` keeps its finished cases.
    """
    check_seed(seed)
    if shard_mib < 1:
        raise SettingsError("--shard-mib", "at least 1", shard_mib)
    task = load_task(task)
    # Imports that take seconds follow the checks and the search for cases.
    from preprocessing.datasets.discovery import discover

    several = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    discovered = discover(several, need_labels=True)
    cases = discovered.cases

    from preprocessing.records import output_folder
    from preprocessing.records.beam_runner import beam_runner, run_pipeline
    from preprocessing.records.case_conversion import CONVERTED, ConversionSettings, outcome_path
    from preprocessing.records.storage import is_local, read_json

    output = os.fspath(output).rstrip("/")
    if is_local(output):
        # A link stays one: the folder that it leads to is replaced.
        output = os.path.realpath(output)
    runner = beam_runner(beam_options, cli.own_options(_parser()))
    fraction = None if splits_file else eval_fraction
    if splits_file:
        splits = load_splits(splits_file, [case.case_id for case in cases])
        cases = [_with_split(case, splits, splits_file) for case in cases]
    else:
        patients = {case.case_id: case.patient for case in cases if not case.problem}
        splits = split_by_hash(patients, eval_fraction)

    settings = ConversionSettings(task, seed, shard_mib * 2**20, tuple(sorted(allow)))
    run = output_folder.run_settings(settings, eval_fraction=fraction, shard_mib=shard_mib)
    with output_folder.partial_folder(output, run, resume=resume, overwrite=overwrite) as partial:
        entries: dict[str, dict[str, Any]] = {}
        already_finished = 0
        pending = cases
        while pending:
            jobs = [(case, splits.get(case.case_id, "train")) for case in pending]
            already_finished += run_pipeline(jobs, settings, partial, runner, progress=progress)
            for case in pending:
                entries[case.case_id] = read_json(outcome_path(partial, case.case_id))["entry"]
            output_folder.reject_duplicates(entries)
            if fraction is None:
                break
            # If a rejected case leaves a split empty, another case has to move there.
            converted = [c for c in cases if entries[c.case_id]["status"] == CONVERTED]
            splits = split_by_hash({c.case_id: c.patient for c in converted}, fraction)
            pending = [c for c in cases if splits.get(c.case_id) != entries[c.case_id].get("split")]
        if already_finished:
            text = f"{already_finished} of {len(cases)} cases were finished already"
            print(text, file=sys.stderr)
        in_order = [entries[case.case_id] for case in cases]
        return output_folder.publish(partial, output, in_order, run | discovered.record(), task)


def _with_split(case: Case, splits: dict[str, str], splits_file: str) -> Case:
    """Returns the case, as one to reject if no split names it."""
    if case.problem or case.case_id in splits:
        return case
    from preprocessing.datasets.case import redact_case_path

    image = redact_case_path(case, case.image_path)
    expected = f"{case.case_id!r} in a split of {splits_file}"
    return dataclasses.replace(case, problem=f"{image}: expected {expected}, found none")


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(
        "preprocessing.convert",
        "Converts CT or DBT volumes with label maps into TFRecords of patches, split by case. Reads "
        "LiTS, Decathlon, 3D-IRCADb and BCS-DBT layouts, DICOM series, one folder per case, and pairs "
        "of files (docs/data.md). Options of Apache Beam (--runner, ...) are passed on.",
        [
            "python -m preprocessing.convert --task ct_liver --input lits --output records",
            "python -m preprocessing.convert --task ct_liver_small --input a b --output records "
            "--eval-fraction 0.3 --seed 1",
            "python -m preprocessing.convert --task ct_liver --input lits --output records "
            "--direct_running_mode multi_threading --direct_num_workers 2",
            "python -m preprocessing.convert --task ct_liver --input 3Dircadb1 --output records "
            "--allow gaps,duplicate_slices",
        ],
    )
    parser.allow_abbrev = False
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="DIR", help="folders of cases")
    add("--output", required=True, metavar="DIR", help="new folder for the records")
    add("--task", default="ct_liver", help="preset or JSON file (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the training patches (default: 0)")
    add("--splits", metavar="FILE", help='your splits: {"train": [case ids], "eval": [case ids]}')
    share = "share of patients for evaluation, by a hash (default: %(default)s)"
    add("--eval-fraction", type=float, default=EVAL_FRACTION, help=share)
    add("--patches-per-case", type=int, metavar="N", help="training patches (default: the task's)")
    add("--patch-shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="default: the task's")
    add("--shard-mib", type=int, default=128, help="largest shard file in MiB (default: 128)")
    cli.add_allow_option(parser)
    add("--overwrite", action="store_true", help="replace a finished data set")
    add("--resume", action="store_true", help="continue a stopped run with the same settings")
    add("--allow-rejected", action="store_true", help="exit with 0 even if cases were rejected")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    arguments, beam_options = _parser().parse_known_args(argv)
    return cli.run_command(lambda given: _run(given, beam_options), arguments)


def _run(arguments: argparse.Namespace, beam_options: Sequence[str]) -> int:
    task = load_task(arguments.task)
    if arguments.patches_per_case is not None:
        task = attrs.evolve(task, patches_per_case=arguments.patches_per_case)
    if arguments.patch_shape is not None:
        task = attrs.evolve(task, patch_shape_zyx=tuple(arguments.patch_shape))
    start = time.monotonic()
    manifest = convert(
        arguments.input,
        arguments.output,
        task,
        seed=arguments.seed,
        splits_file=arguments.splits,
        eval_fraction=arguments.eval_fraction,
        shard_mib=arguments.shard_mib,
        allow=cli.parse_allowances(arguments.allow),
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        beam_options=beam_options,
    )
    rejected = [entry for entry in manifest["cases"] if entry["status"] == "rejected"]
    for entry in rejected:
        print(f"rejected {entry['case_id']}: {entry['reason']}", file=sys.stderr)
    if manifest["passed_over"]:
        count = len(manifest["passed_over"])
        print(f"passed over {count} files or folders, see the manifest", file=sys.stderr)
    questionable = [entry for entry in manifest["cases"] if entry.get("warnings")]
    if questionable:
        text = f"{sum(len(e['warnings']) for e in questionable)} warnings about {len(questionable)}"
        where = "see the manifest or python -m preprocessing.verify"
        print(f"warning: {text} cases, {where}", file=sys.stderr)
    empty = [name for name, split in manifest["splits"].items() if not split["cases"]]
    if manifest["converted"] and empty:
        print(f"warning: no case in the split {', '.join(empty)}", file=sys.stderr)
    counts = ", ".join(
        f"{name} {split['cases']} cases with {split['patches']} patches"
        for name, split in manifest["splits"].items()
    )
    converted = f"{manifest['converted']} of {manifest['found']} cases converted ({counts})"
    seconds = time.monotonic() - start
    print(f"{converted}, {len(rejected)} rejected, in {seconds:.1f} s: {arguments.output}")
    if not manifest["converted"]:
        raise PipelineError(arguments.output, "at least one valid case", "none; see its manifest")
    return 1 if rejected and not arguments.allow_rejected else 0


if __name__ == "__main__":
    sys.exit(main())
