"""Beam's runners: which one runs the conversion, and the pipeline it runs."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from preprocessing.case import Case
from preprocessing.conversion import ConversionSettings, ConvertCase
from preprocessing.errors import PipelineError, SettingsError


def beam_runner(
    beam_options: Sequence[str], own_options: Sequence[str]
) -> tuple[beam.runners.PipelineRunner, PipelineOptions]:
    """Returns the runner and options that a Beam command line asks for.

    Beam's own DirectRunner may fetch a program from the internet (Prism), so its in-process engine
    is taken in its place.

    Args:
      beam_options: what the command line held beyond the command's own options.
      own_options: the command's own options, to suggest one for a typing error.

    Raises:
      SettingsError: an option or a runner that Beam does not know either.
    """
    # Some of Beam's option classes share options.
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for kind in _subclasses(PipelineOptions):
        kind._add_argparse_args(known)
    _, unknown = known.parse_known_args(list(beam_options))
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], own_options, n=1)
        remedy = f"Did you mean {near[0]}?" if near else ""
        raise SettingsError("convert", "options of --help or of Beam", unknown[0], remedy)
    options = PipelineOptions(list(beam_options), save_main_session=False)
    name = options.view_as(StandardOptions).runner
    if name in (None, "DirectRunner"):
        _check_processes(options)
        return FnApiRunner(), options
    try:
        return create_runner(name), options
    except (ValueError, ImportError) as error:
        raise SettingsError("--runner", "one of Beam's runners", error) from None


def _check_processes(options: PipelineOptions, interpreter: str = sys.executable) -> None:
    """Refuses worker processes where Beam can't start them, instead of waiting for them forever.

    Beam starts them through a shell without quoting the interpreter's path.
    """
    mode = options.view_as(DirectOptions).direct_running_mode
    if mode == "multi_processing" and interpreter != shlex.quote(interpreter):
        raise SettingsError(
            "--direct_running_mode",
            "a Python interpreter in a folder without spaces for multi_processing",
            interpreter,
            "Use multi_threading, or move the environment.",
        )


def run_pipeline(
    jobs: Sequence[tuple[Case, str]],
    settings: ConversionSettings,
    folder: str,
    runner: tuple[beam.runners.PipelineRunner, PipelineOptions],
) -> None:
    """Converts (case, split) pairs into a folder and waits until all are done.

    Raises:
      PipelineError: a worker failed, because of a full disk for example.
    """
    try:
        with beam.Pipeline(runner=runner[0], options=runner[1]) as pipeline:
            _ = (
                pipeline
                | "Cases" >> beam.Create(jobs)
                | "Spread" >> beam.Reshuffle()
                | "Convert" >> beam.ParDo(ConvertCase(settings, folder))
            )
    except RuntimeError as error:
        # Beam hands on what happened in a worker as text.
        raise PipelineError("convert", "a Beam job that finishes", error) from error


def _subclasses(kind: type) -> Iterator[Any]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
