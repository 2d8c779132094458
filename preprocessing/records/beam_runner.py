"""The Beam pipeline of a conversion and the choice of its runner."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import platform
import re
import shlex
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence

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
from tqdm import tqdm

from preprocessing.datasets.case import Case
from preprocessing.errors import PipelineError, SettingsError
from preprocessing.records.case_conversion import TAKEN_OVER, ConversionSettings, ConvertCase
from preprocessing.records.output_folder import finished_cases

MOST_THREADS = 4
# Runners that need a program besides Beam, and the option that names it.
_PROGRAMS = {
    "FlinkRunner": "flink_job_server_jar",
    "SparkRunner": "spark_job_server_jar",
    "PrismRunner": "prism_location",
}
_PORTABLE = (*_PROGRAMS, "PortableRunner")
# What Beam raises when a job fails.
_JOB_ERRORS = (RuntimeError, ValueError, grpc.RpcError)
# What engines say of trouble around the workers, which names no cause, and what it means.
_MEANINGS = {
    "client cancelled|SDK worker disconnected": "a worker that was lost",
    "TimeoutException: Waited ": "no answer from the workers; their log says why, for example because "
    f"they are not of Beam {beam.__version__} and Python {'.'.join(platform.python_version_tuple()[:2])}",
    "Connection refused|UnknownHost|Could not connect|UnresolvedAddress": "an engine or worker pool "
    "out of reach",
}


def beam_runner(
    beam_options: Sequence[str], own_options: Sequence[str]
) -> tuple[beam.runners.PipelineRunner, PipelineOptions]:
    """Returns the runner and the options for a Beam command line.

    Beam's DirectRunner may download a program (Prism), so its in-process engine is used instead. The
    command's own options serve to suggest one for a misspelled option. Raises SettingsError for an
    unknown option, or a runner that loses outputs or would download a program.
    """
    # Several of Beam's option classes define the same option.
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(known)
    _, unknown = known.parse_known_args(list(beam_options))
    options = PipelineOptions(list(beam_options), save_main_session=False)
    name = options.view_as(StandardOptions).runner or "DirectRunner"
    short = name.rpartition(".")[2]
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], own_options, n=1)
        remedy = f"Did you mean {near[0]}?" if near else ""
        # A job server may have options that Beam's Python SDK does not.
        if near or short not in _PORTABLE:
            raise SettingsError("command line", "options of --help or of Beam", unknown[0], remedy)
    if short == "DirectRunner":
        _choose_workers(options, beam_options)
        _check_processes(options)
        return FnApiRunner(), options
    if short == "DaskRunner":
        expected, found = "a runner that runs every step", f"{short}, which silently skips steps"
        remedy = "Use DirectRunner on one machine, FlinkRunner on several."
        raise SettingsError("--runner", expected, found, remedy)
    program, given = _PROGRAMS.get(short), options.get_all_options()
    if program and not given[program] and not given["job_endpoint"]:
        expected = f"--{program} FILE or --job_endpoint HOST:PORT"
        remedy = "Beam would download the program; see docs/engines.md for where to get it."
        raise SettingsError(f"--runner {short}", expected, "neither", remedy)
    if program and (path := given[program]) and "://" not in path and not os.path.isfile(path):
        raise SettingsError(f"--{program}", "a file", f"none at {path}")
    try:
        return create_runner(name), options
    except (ValueError, ImportError) as error:
        raise SettingsError("--runner", "one of Beam's runners", error) from None


def _choose_workers(options: PipelineOptions, beam_options: Sequence[str]) -> None:
    """Sets one thread per core, up to `MOST_THREADS`, unless the command line sets workers.

    More threads hardly help, as they share the interpreter's lock, and each holds a volume in memory.
    """
    if any(option.startswith("--direct_") for option in beam_options):
        return
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    if threads > 1:
        direct = options.view_as(DirectOptions)
        direct.direct_running_mode, direct.direct_num_workers = "multi_threading", threads


def _check_processes(options: PipelineOptions, interpreter: str = sys.executable) -> None:
    """Rejects worker processes that never start: Beam does not quote the interpreter's path."""
    mode = options.view_as(DirectOptions).direct_running_mode
    if mode == "multi_processing" and interpreter != shlex.quote(interpreter):
        expected = "a Python interpreter in a folder without spaces for multi_processing"
        remedy = "Use multi_threading, or move the environment."
        raise SettingsError("--direct_running_mode", expected, interpreter, remedy)


def run_pipeline(
    jobs: Sequence[tuple[Case, str]],
    settings: ConversionSettings,
    folder: str,
    runner: tuple[beam.runners.PipelineRunner, PipelineOptions],
    *,
    progress: bool,
) -> int:
    """Converts (case, split) pairs into a folder; returns how many were already finished there.

    Raises PipelineError if a worker fails, for example because the disk is full.
    """
    try:
        with (
            _progress_bar(folder, len(jobs), progress),
            _quiet_in_notebooks(),
            _quiet_while_it_fails(),
            beam.Pipeline(runner=runner[0], options=runner[1]) as pipeline,
        ):
            _ = (
                pipeline
                | "Cases" >> beam.Create(jobs)
                | "Spread" >> beam.Reshuffle()
                | "Convert" >> beam.ParDo(ConvertCase(settings, folder))
            )
    except grpc.FutureTimeoutError as error:
        endpoint = runner[1].view_as(PortableOptions).job_endpoint
        raise PipelineError(f"--job_endpoint {endpoint}", "a job server", "no answer") from error
    except _JOB_ERRORS as error:
        remedy = "Fix the cause and run again; --resume keeps the finished cases."
        raise PipelineError(folder, "a Beam job that finishes", _cause(error), remedy) from error
    counter = MetricsFilter().with_namespace(TAKEN_OVER[0]).with_name(TAKEN_OVER[1])
    counters = pipeline.result.metrics().query(counter)["counters"]
    return sum(each.result or 0 for each in counters)


@contextlib.contextmanager
def _quiet_while_it_fails() -> Iterator[None]:
    """Hides tracebacks that Beam, gRPC and engines print in addition to raising the error."""
    if logging.getLogger("apache_beam").isEnabledFor(logging.ERROR):
        # As someone who is looking for an error has set it.
        yield
        return

    def no_message_of_an_engine(record: logging.LogRecord) -> bool:
        return record.module != "portable_runner"

    root, channel = logging.getLogger(), logging.getLogger("grpc")
    level, before = channel.level, set(threading.enumerate())
    root.addFilter(no_message_of_an_engine)
    channel.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except _JOB_ERRORS:
        _silence(weakref.WeakSet(set(threading.enumerate()) - before))
        raise
    finally:
        root.removeFilter(no_message_of_an_engine)
        channel.setLevel(level)


def _silence(threads: weakref.WeakSet[threading.Thread]) -> None:
    """Hides the tracebacks of threads of a failed job, which may outlive it and fail of the same cause."""
    show = threading.excepthook

    def show_others(arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread not in threads:
            show(arguments)

    threading.excepthook = show_others


@contextlib.contextmanager
def _quiet_in_notebooks() -> Iterator[None]:
    """Keeps out of a notebook what Beam shows there: a warning, and a script that loads jQuery."""
    if "IPython" not in sys.modules:
        yield
        return
    from IPython.utils.capture import capture_output

    logging.getLogger("apache_beam.runners.interactive").setLevel(logging.ERROR)
    with capture_output(stdout=False, stderr=False):
        yield


@contextlib.contextmanager
def _progress_bar(folder: str, total: int, visible: bool) -> Iterator[None]:
    """Shows the number of cases with an outcome in the folder."""
    done = threading.Event()
    with tqdm(total=total, desc="convert", unit="case", disable=not visible) as bar:

        def watch() -> None:
            while not done.wait(0.5):
                bar.update(max(0, min(finished_cases(folder), total) - bar.n))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        bar.update(total - bar.n)


def _cause(error: Exception) -> str:
    """Returns what went wrong from an error of Beam in one line.

    It holds a worker's error as the text of a traceback, or an engine's with a stack of Java.
    """
    if isinstance(error, grpc.RpcError):
        code, details = error.code(), error.details() or "no details"
        if code == grpc.StatusCode.UNAVAILABLE:
            return f"a job server that went away ({details})"
        where = "its log says why, for example that it can't write its --artifacts_dir"
        return f"an error of the job server ({code.name}, {details}); {where}"
    lines = [line.strip() for line in str(error).splitlines()]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", line)]
    cause = raised[-1] if raised else " ".join(lines)
    cause = re.sub(r"^(RuntimeError: )*|\s*\[while running .*$", "", cause)
    cause = re.sub(r"^Pipeline \S+ failed in state \w+: ", "", cause)
    cause = re.split(r"\s+at (?:java\.|org\.|scala\.)", cause)[0]
    for words, meaning in _MEANINGS.items():
        if re.search(words, str(error)) and (not raised or re.match(r"(java|org)\.", cause)):
            return f"{meaning} ({cause[:200]})"
    return cause
