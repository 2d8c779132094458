"""Beam's runners: which one runs the conversion, and the pipeline it runs."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from preprocessing.datasets.case import Case
from preprocessing.errors import PipelineError, SettingsError
from preprocessing.records.case_conversion import TAKEN_OVER, ConversionSettings, ConvertCase

MOST_THREADS = 4
# What a runner needs besides Beam, and the option that names it.
_PROGRAMS = {
    "FlinkRunner": "flink_job_server_jar",
    "SparkRunner": "spark_job_server_jar",
    "PrismRunner": "prism_location",
}
_PORTABLE = (*_PROGRAMS, "PortableRunner")


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
    options = PipelineOptions(list(beam_options), save_main_session=False)
    name = options.view_as(StandardOptions).runner or "DirectRunner"
    short = name.rpartition(".")[2]
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], own_options, n=1)
        remedy = f"Did you mean {near[0]}?" if near else ""
        # A job server may know options that Beam's Python does not.
        if near or short not in _PORTABLE:
            raise SettingsError("command line", "options of --help or of Beam", unknown[0], remedy)
    if short == "DirectRunner":
        _choose_workers(options, beam_options)
        _check_processes(options)
        return FnApiRunner(), options
    _check_runner(short, options)
    try:
        return create_runner(name), options
    except (ValueError, ImportError) as error:
        raise SettingsError("--runner", "one of Beam's runners", error) from None


def _choose_workers(options: PipelineOptions, beam_options: Sequence[str]) -> None:
    """Takes a thread a core, unless the command line says something else.

    Threads start at once, while processes take seconds to; they share one interpreter, which lets
    few of them work at a time, and each holds a volume: so there are `MOST_THREADS` at most.
    """
    if any(option.startswith("--direct_") for option in beam_options):
        return
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    if threads > 1:
        direct = options.view_as(DirectOptions)
        direct.direct_running_mode, direct.direct_num_workers = "multi_threading", threads


def _check_runner(name: str, options: PipelineOptions) -> None:
    """Refuses runners that lose outputs, or that would fetch a program from the internet."""
    if name == "DaskRunner":
        raise SettingsError(
            "--runner",
            "a runner that runs every step of a job",
            f"{name}, which leaves out steps without a word",
            "Use DirectRunner on one machine, FlinkRunner on several.",
        )
    option = _PROGRAMS.get(name)
    everything = options.get_all_options()
    if option and not everything[option] and not everything["job_endpoint"]:
        raise SettingsError(
            f"--runner {name}",
            f"--{option} FILE or --job_endpoint HOST:PORT",
            "neither",
            "Beam would fetch the program from the internet; docs/engines.md says where it is.",
        )


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
) -> int:
    """Converts (case, split) pairs into a folder and waits until all are done.

    Returns:
      How many of the cases were finished in the folder already.

    Raises:
      PipelineError: a worker failed, because of a full disk for example.
    """
    try:
        with _quiet_workers(), beam.Pipeline(runner=runner[0], options=runner[1]) as pipeline:
            _ = (
                pipeline
                | "Cases" >> beam.Create(jobs)
                | "Spread" >> beam.Reshuffle()
                | "Convert" >> beam.ParDo(ConvertCase(settings, folder))
            )
    except grpc.FutureTimeoutError as error:
        endpoint = runner[1].view_as(PortableOptions).job_endpoint
        raise PipelineError(f"--job_endpoint {endpoint}", "a job server", "no answer") from error
    except (RuntimeError, ValueError, grpc.RpcError) as error:
        raise PipelineError(
            folder,
            "a Beam job that finishes",
            _cause(error),
            "Mend it and run again; --resume keeps the finished cases.",
        ) from error
    counter = MetricsFilter().with_namespace(TAKEN_OVER[0]).with_name(TAKEN_OVER[1])
    counters = pipeline.result.metrics().query(counter)["counters"]
    return sum(each.result or 0 for each in counters)


def _quiet_workers() -> contextlib.AbstractContextManager:
    """Keeps the tracebacks off the screen that Beam prints for errors which it raises as well."""
    if logging.getLogger("apache_beam").isEnabledFor(logging.ERROR):
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())


def _cause(error: Exception) -> str:
    """Returns what happened in a worker, which Beam hands on as the text of a traceback."""
    lines = [line.strip() for line in str(error).splitlines()]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", line)]
    cause = raised[-1] if raised else " ".join(lines)
    return re.sub(r"^(RuntimeError: )*|\s*\[while running .*$", "", cause)


def _subclasses(kind: type) -> Iterator[Any]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
