"""What is looked at before a pipeline is launched: its data, its folder, its engine, its schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.configs import RECORD_PATTERN, PipelineSettings
from pipeline.local.metadata_store import METADATA_FILE, has_blessed_model
from pipeline.span_folders import newest_span
from preprocessing.errors import InputError, PipelineError, SettingsError
from preprocessing.files import write_json
from preprocessing.records.splits import SPLITS


def check_launch(
    settings: PipelineSettings, beam_options: Sequence[str], own_options: Sequence[str]
) -> None:
    """Refuses what can't work, before anything is launched.

    Args:
      settings: of the pipeline.
      beam_options: what the command line held beyond its own options.
      own_options: the command's own options, to suggest one for a typing error.

    Raises:
      InputError: a split has no records, its first one can't be read, there are no labelled cases,
        or the schema is none for this task.
      SettingsError: an option or an engine that Beam does not know, a warm start of nothing, or what
        several workers (TF_CONFIG) can't do.
      PipelineError: nothing can be written to the output folder.
    """
    _check_workers(settings)
    data = newest_span(settings.input) if settings.spans else Path(settings.input)
    if settings.from_volumes:
        _check_volumes(data)
    else:
        _check_records(data)
    _check_output(Path(settings.output))
    if settings.schema not in ("curated", "inferred"):
        from pipeline.components.schema import read_schema

        read_schema(settings.schema, settings.task)
    if settings.warm_start and not has_blessed_model(Path(settings.output) / METADATA_FILE):
        raise SettingsError(
            "--warm-start",
            f"a blessed model of an earlier run in {settings.output}",
            "none",
            "Run the pipeline without --warm-start first.",
        )
    if beam_options:
        from preprocessing.records.beam_runner import beam_runner

        beam_runner(beam_options, own_options)


def _check_workers(settings: PipelineSettings) -> None:
    from ahnet_tf.training.distribution import check_alone, check_replicas, workers_of
    from pipeline.training_process import check_chief

    check_chief(workers_of())
    if settings.tuner_trials:
        check_alone("--tune")
    for stage in settings.config.stages.values():
        check_replicas(stage.training.replicas)


def _check_records(data: Path) -> None:
    for split in SPLITS:
        folder = data / split
        files = sorted(folder.glob(RECORD_PATTERN))
        if not any(_has_record(file) for file in files):
            found = f"{len(files)} files without any" if files else "no such file"
            raise InputError(
                folder,
                f"records of the {split} split ({RECORD_PATTERN})",
                found if folder.is_dir() else "no such folder",
                "Write them with python -m preprocessing.convert, with a case for each split.",
            )


def _check_volumes(data: Path) -> None:
    from preprocessing.datasets.discovery import find_cases

    cases = find_cases([str(data)], need_labels=True)
    if len(cases) < 2:
        raise InputError(
            data, "two or more labelled cases, one for each split", f"{len(cases)} of them"
        )


def _check_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / ".writable", {})
        (output / ".writable").unlink()
    except OSError as error:
        raise PipelineError(output, "a folder that can be written to", error.strerror) from None


def _has_record(file: Path) -> bool:
    import tensorflow as tf

    compression = "GZIP" if file.suffix == ".gz" else ""
    try:
        return bool(list(tf.data.TFRecordDataset(str(file), compression).take(1)))
    except tf.errors.DataLossError as error:
        raise InputError(file, "readable TFRecords", error.message) from None
