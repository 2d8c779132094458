"""What each CPU optimization of the networks saves, alone, against plain TensorFlow.

python -m benchmarks.network_tricks [--case NAME] [--work forward-128] [--precision float32]

Each case computes what AH-Net's layers compute, at their shapes, once as the optimization does and once
plainly, in turn. The difference times the number of such layers, as a share of the whole network's time, is
how much longer the network would take without the optimization. Times are CPU seconds, which other
processes disturb less than the wall clock. Figures are added to the file as they come.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from benchmarks import network_sites
from benchmarks.network_cases import CASES
from benchmarks.report import read_report, versions, write_report
from preprocessing.cli import make_parser, run_command

# Slices, rows and columns of the image.
WORKS = {
    "forward-128": (32, 128),
    "training-128": (32, 128),
    "forward-512": (32, 512),
    "training-512": (4, 512),
}
PRECISIONS = ("float32", "bfloat16")
# TensorFlow turns oneDNN on by itself only where the CPU has AVX512-VNNI, AVX512-BF16 or AMX.
ONEDNN = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default")
WARM_UP = 1


def step_of(function: Callable, kind: str) -> Callable:
    """Returns a compiled forward pass, or one with the gradients of all inputs."""

    @tf.function
    def forward(*inputs):
        return function(*inputs)

    @tf.function
    def training(*inputs):
        # Nothing before the stem learns, so the image has no gradient.
        learning = inputs[1:] if inputs[0].shape[-1] == 1 else inputs
        with tf.GradientTape() as tape:
            tape.watch(learning)
            outputs = tf.nest.flatten(function(*inputs))
            loss = tf.add_n([tf.reduce_sum(tf.cast(y, tf.float32)) for y in outputs])
        return tape.gradient(loss, learning)

    return forward if kind == "forward" else training


def cpu_seconds(step: Callable, inputs: Sequence[tf.Tensor]) -> float:
    """Returns the CPU seconds of a call."""
    start = time.process_time()
    for value in tf.nest.flatten(step(*inputs)):
        if value is not None:
            tf.reshape(value, [-1])[0].numpy()
    return time.process_time() - start


def measure(name: str, work: str, precision: str, turns: int) -> dict:
    """Measures a case at all of its sites; returns its figures."""
    case, kind = CASES[name], work.split("-")[0]
    saved, fast_total = 0.0, 0.0
    for site in case.sites:
        inputs = network_sites.inputs_of(site, WORKS[work], precision)
        steps = {key: step_of(getattr(case, key), kind) for key in ("fast", "plain")}
        seconds = {key: [] for key in steps}
        for turn in range(WARM_UP + turns):
            for key, step in steps.items():
                taken = cpu_seconds(step, inputs)
                if turn >= WARM_UP:
                    seconds[key].append(taken)
        fast, plain = (statistics.median(taken) for taken in seconds.values())
        saved += site.count * (plain - fast)
        fast_total += site.count * fast
    return {
        "case": name,
        "used": case.used,
        "work": work,
        "precision": precision,
        "fast_cpu_seconds": fast_total,
        "saved_cpu_seconds": saved,
        "onednn": ONEDNN,
    }


def measure_whole(work: str, precision: str) -> dict:
    """Measures the whole network."""
    from benchmarks import tensorflow_worker

    kind, (slices, size) = work.split("-")[0], WORKS[work]
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    tensorflow_worker.prepare(kind, (1, slices, size, size, 1), precision, threads)
    step = tensorflow_worker.STATE.pop("step")
    seconds = [cpu_seconds(step, ()) for _ in range(4)][1:]
    keras.mixed_precision.set_global_policy("float32")
    return {
        "case": "whole network",
        "work": work,
        "precision": precision,
        "fast_cpu_seconds": min(seconds),
        "onednn": ONEDNN,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.network_tricks",
        __doc__.splitlines()[0],
        ["python -m benchmarks.network_tricks"],
    )
    cases = ("whole network", *CASES)
    parser.add_argument("--case", choices=cases, action="append", help="may be repeated")
    parser.add_argument("--work", choices=WORKS, action="append", help="may be repeated")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be repeated")
    parser.add_argument("--turns", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    for work in arguments.work or WORKS:
        for precision in arguments.precision or PRECISIONS:
            for name in arguments.case or ("whole network", *CASES):
                if name == "whole network":
                    found = measure_whole(work, precision)
                elif work.split("-")[0] in CASES[name].kinds:
                    found = measure(name, work, precision, arguments.turns)
                else:
                    continue
                print(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()},
                    flush=True,
                )
                _add(found, arguments)


def _add(found: dict, arguments) -> None:
    keys = ("case", "work", "precision", "onednn")
    figures = [
        figure
        for figure in read_report("network_tricks")["figures"]
        if any(figure[key] != found[key] for key in keys)
    ]
    with contextlib.redirect_stdout(None):
        write_report(
            "network_tricks",
            [*figures, found],
            [],
            versions("tensorflow", "keras", "numpy"),
            {"turns": arguments.turns, "threads": arguments.threads},
        )


if __name__ == "__main__":
    sys.exit(main())
