"""The Beam job from volumes on disk to TFRecords of patches, with a manifest of every case.

OUTPUT/train/CASE-00000.tfrecord   foreground-balanced patches of the training cases
OUTPUT/eval/CASE-00000.tfrecord    exact tilings of the evaluation cases
OUTPUT/task.json                   the task, as the networks and servers need it
OUTPUT/manifest.json               every case found: converted, or rejected with the reason

The same input, task, seed and settings give the same bytes, whatever the runner and the number of
workers. Everything is written into a hidden folder beside OUTPUT and renamed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from preprocessing.command import make_parser, run_command
from preprocessing.errors import PipelineError, SettingsError
from preprocessing.splits import EVAL_FRACTION, SPLITS, load_splits, split_by_hash
from preprocessing.tasks import Task, load_task

if TYPE_CHECKING:
    from preprocessing.cases import Case

MANIFEST, TASK = "manifest.json", "task.json"
_RECORDS = re.compile(r"^(train|eval)/[^/]+\.tfrecord$")


def convert(
    inputs: Sequence[str],
    output: str,
    task: Task,
    *,
    seed: int = 0,
    splits_file: str | None = None,
    eval_fraction: float = EVAL_FRACTION,
    shard_mib: int = 128,
    overwrite: bool = False,
    beam_options: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Converts all cases below some folders; see the module's description for what is written.

    Args:
      inputs: data-set folders, see `preprocessing.cases`.
      output: the new folder; any address that Beam's file systems know.
      task: classes, resampling and patches.
      seed: of the training patches.
      splits_file: the user's own splits, see `preprocessing.splits.load_splits`; cases that it does
        not name are rejected.
      eval_fraction: without a splits file, the share of cases to evaluate on.
      shard_mib: largest size of a shard file.
      overwrite: replace a finished data set.
      beam_options: as on Beam's command line.
      progress: show a bar.

    Returns:
      The manifest. If every case was rejected it is all that was written.

    Raises:
      InputError: an input folder is missing or empty.
      SettingsError: the output exists, or a setting doesn't fit.
    """
    if shard_mib < 1 or seed < 0:
        raise SettingsError("convert", "--shard-mib >= 1 and --seed >= 0", (shard_mib, seed))
    # What takes seconds to import comes after the check that there is something to do.
    from preprocessing.cases import find_cases

    cases = find_cases(inputs, need_labels=True)

    from apache_beam.io.filesystems import FileSystems

    from preprocessing.storage import delete_folder, hidden_beside, make_folder, read_json

    output = output.rstrip("/")
    _check_output(output, overwrite)
    runner, options = _runner(beam_options)
    sound = [case.case_id for case in cases if not case.problem]
    if splits_file:
        splits = load_splits(splits_file, [case.case_id for case in cases])
        cases = [_with_split(case, splits, splits_file) for case in cases]
    else:
        splits = split_by_hash(sound, eval_fraction)

    from preprocessing.conversion import CONVERTED, OUTCOMES, ConversionSettings, outcome_path

    partial = hidden_beside(output, "partial")
    delete_folder(partial)
    for name in (*SPLITS, OUTCOMES):
        make_folder(FileSystems.join(partial, name))
    settings = ConversionSettings(task, seed, shard_mib * 2**20)
    entries: dict[str, dict[str, Any]] = {}
    pending = cases
    while pending:
        jobs = [(case, splits.get(case.case_id, "train")) for case in pending]
        with _bar(partial, len(jobs), progress):
            _run_pipeline(jobs, settings, partial, runner, options)
        for case in pending:
            entries[case.case_id] = read_json(outcome_path(partial, case.case_id))
        if splits_file:
            break
        # A rejected case may leave a split empty that its place would have filled.
        converted = [name for name, entry in entries.items() if entry["status"] == CONVERTED]
        splits = split_by_hash(converted, eval_fraction)
        pending = [c for c in cases if splits.get(c.case_id) != entries[c.case_id].get("split")]
        _delete_shards(partial, [entries[case.case_id] for case in pending])

    manifest = _manifest(
        [entries[case.case_id] for case in cases],
        settings,
        {"eval_fraction": None if splits_file else eval_fraction, "shard_mib": shard_mib},
    )
    _publish(partial, output, manifest, task)
    return manifest


def rejected_cases(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the manifest's entries of rejected cases."""
    return [entry for entry in manifest["cases"] if entry["status"] == "rejected"]


def _with_split(case: Case, splits: dict[str, str], splits_file: str) -> Case:
    if case.problem or case.case_id in splits:
        return case
    problem = (
        f"{case.image_path}: expected {case.case_id!r} in a split of {splits_file}, found none"
    )
    return dataclasses.replace(case, problem=problem)


def _runner(beam_options: Sequence[str]) -> tuple[Any, Any]:
    """Returns Beam's runner and options; typing errors among the options are told.

    Beam's own DirectRunner may fetch a program from the internet (Prism), so its in-process engine
    is asked for by name.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import create_runner

    if beam_options:
        # Some of Beam's option classes share options.
        known = argparse.ArgumentParser(
            add_help=False, allow_abbrev=False, conflict_handler="resolve"
        )
        for kind in _subclasses(PipelineOptions):
            kind._add_argparse_args(known)
        _, unknown = known.parse_known_args(list(beam_options))
        if unknown:
            names = [name for a in _parser()._actions for name in a.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1)
            remedy = f"Did you mean {near[0]}?" if near else ""
            raise SettingsError("convert", "options of --help or of Beam", unknown[0], remedy)
    options = PipelineOptions(list(beam_options), save_main_session=False)
    name = options.view_as(StandardOptions).runner
    if name in (None, "DirectRunner"):
        return FnApiRunner(), options
    try:
        return create_runner(name), options
    except (ValueError, ImportError) as error:
        raise SettingsError("--runner", "one of Beam's runners", error) from None


def _subclasses(kind: type) -> Iterator[type]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _run_pipeline(jobs, settings, partial, runner, options) -> None:
    import apache_beam as beam

    from preprocessing.conversion import ConvertCase

    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = (
            pipeline
            | "Cases" >> beam.Create(jobs)
            | "Spread" >> beam.Reshuffle()
            | "Convert" >> beam.ParDo(ConvertCase(settings, partial))
        )


@contextlib.contextmanager
def _bar(partial: str, total: int, visible: bool) -> Iterator[None]:
    """Shows how many cases have left their outcome in the output's file system."""
    from apache_beam.io.filesystems import FileSystems
    from tqdm import tqdm

    from preprocessing.conversion import outcome_path

    done = threading.Event()
    with tqdm(total=total, desc="convert", unit="case", disable=not visible) as bar:

        def watch() -> None:
            while not done.wait(0.5):
                found = FileSystems.match([outcome_path(partial, "*")])[0].metadata_list
                bar.update(max(0, min(len(found), total) - bar.n))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        bar.update(total - bar.n)


def _manifest(entries, settings, further_settings) -> dict[str, Any]:
    import apache_beam
    import nibabel
    import numpy
    import scipy
    import tensorflow

    modules = (apache_beam, nibabel, numpy, scipy, tensorflow)
    statuses = [entry["status"] for entry in entries]
    splits = {}
    for split in SPLITS:
        of_split = [entry for entry in entries if entry.get("split") == split]
        patches = sum(entry["patches"] for entry in of_split)
        splits[split] = {"cases": len(of_split), "patches": patches}
    return {
        "found": len(entries),
        "converted": statuses.count("converted"),
        "rejected": statuses.count("rejected"),
        "splits": splits,
        "cases": entries,
        "settings": {"seed": settings.seed, "task": settings.task.to_dict(), **further_settings},
        "versions": {module.__name__: module.__version__ for module in modules}
        | {"python": platform.python_version()},
    }


def _delete_shards(partial: str, entries: Sequence[dict[str, Any]]) -> None:
    from apache_beam.io.filesystems import FileSystems

    for entry in entries:
        for shard in entry.get("shards", ()):
            FileSystems.delete([FileSystems.join(partial, entry["split"], shard["name"])])


def _check_output(output: str, overwrite: bool) -> None:
    """Refuses an output that holds a finished data set, or anything else that would be lost."""
    from preprocessing.storage import list_files

    there = list_files(output)
    foreign = [name for name in there if name not in (MANIFEST, TASK) and not _RECORDS.match(name)]
    if foreign:
        raise SettingsError("--output", "a new or empty folder", f"{foreign[0]} in {output}")
    if TASK in there and not overwrite:
        found = f"a finished data set in {output}"
        raise SettingsError("--output", "a new folder", found, "Give --overwrite to replace it.")


def _publish(partial: str, output: str, manifest: dict[str, Any], task: Task) -> None:
    """Completes the hidden folder and renames it; without a converted case only the manifest stays."""
    from apache_beam.io.filesystems import FileSystems

    from preprocessing.conversion import OUTCOMES
    from preprocessing.storage import delete_folder, make_folder, replace_folder, write_json

    if manifest["converted"]:
        delete_folder(FileSystems.join(partial, OUTCOMES))
        write_json(FileSystems.join(partial, TASK), task.to_dict())
    else:
        delete_folder(partial)
        make_folder(partial)
    write_json(FileSystems.join(partial, MANIFEST), manifest)
    replace_folder(partial, output, last=MANIFEST)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "preprocessing.convert",
        "Converts CT or DBT volumes with label maps into TFRecords of patches, split by case. "
        "Understands LiTS and Decathlon naming, one folder a case, and pairs of files. "
        "Options of Apache Beam (--runner, --direct_num_workers, ...) are passed through.",
        [
            "python -m preprocessing.convert --task ct_liver --input lits --output records",
            "python -m preprocessing.convert --task ct_liver_small --input a b --output records "
            "--eval-fraction 0.3 --seed 1",
            "python -m preprocessing.convert --task ct_liver --input lits --output records "
            "--direct_running_mode multi_threading --direct_num_workers 2",
        ],
    )
    parser.allow_abbrev = False
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="DIR", help="folders of cases")
    add("--output", required=True, metavar="DIR", help="new folder for the records")
    add("--task", default="ct_liver", help="preset or JSON file (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the training patches (default: 0)")
    add("--splits", metavar="FILE", help='own splits: {"train": [case ids], "eval": [case ids]}')
    add(
        "--eval-fraction",
        type=float,
        default=EVAL_FRACTION,
        help="share of cases to evaluate on, chosen by a hash of the case id; with two or more cases "
        "neither split stays empty (default: %(default)s)",
    )
    add("--patches-per-case", type=int, metavar="N", help="training patches (default: the task's)")
    add("--patch-shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="default: the task's")
    add("--shard-mib", type=int, default=128, help="largest shard file (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace a finished data set")
    add("--allow-rejected", action="store_true", help="exit with 0 although cases were rejected")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    arguments, beam_options = _parser().parse_known_args(argv)
    return run_command(lambda given: _run(given, beam_options), arguments)


def _run(arguments: argparse.Namespace, beam_options: Sequence[str]) -> int:
    task = load_task(arguments.task)
    if arguments.patches_per_case is not None:
        task = dataclasses.replace(task, patches_per_case=arguments.patches_per_case)
    if arguments.patch_shape is not None:
        task = dataclasses.replace(task, patch_shape_zyx=tuple(arguments.patch_shape))
    start = time.monotonic()
    manifest = convert(
        arguments.input,
        arguments.output,
        task,
        seed=arguments.seed,
        splits_file=arguments.splits,
        eval_fraction=arguments.eval_fraction,
        shard_mib=arguments.shard_mib,
        overwrite=arguments.overwrite,
        beam_options=beam_options,
    )
    rejected = rejected_cases(manifest)
    for entry in rejected:
        print(f"rejected {entry['case_id']}: {entry['reason']}", file=sys.stderr)
    if manifest["converted"] and not all(split["cases"] for split in manifest["splits"].values()):
        empty = [name for name, split in manifest["splits"].items() if not split["cases"]]
        print(f"warning: no case in the split {', '.join(empty)}", file=sys.stderr)
    counts = ", ".join(
        f"{name} {split['cases']} cases with {split['patches']} patches"
        for name, split in manifest["splits"].items()
    )
    print(
        f"{manifest['converted']} of {manifest['found']} cases converted ({counts}), "
        f"{len(rejected)} rejected, in {time.monotonic() - start:.1f} s: {arguments.output}"
    )
    if not manifest["converted"]:
        raise PipelineError(arguments.output, "at least one sound case", "none; see its manifest")
    return 1 if rejected and not arguments.allow_rejected else 0


if __name__ == "__main__":
    sys.exit(main())
