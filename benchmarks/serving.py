"""Benchmark of the embedded server: latency under load, overhead, faults, memory growth, compression.

python -m benchmarks.serving --models DIR [--parts latency overhead faults soak compression] [--soak-seconds 300]

The server runs in a separate process on the same machine; clients are threads of this process. The
network has random weights. Parts that are not measured keep their earlier figures.
"""

from __future__ import annotations

import gzip
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.report import goal, print_table, read_report, versions, write_report
from benchmarks.serving_load import (
    WINDOW_ZYX,
    Load,
    Server,
    answers,
    export_random,
    load,
    running,
    small_volume,
)
from preprocessing.cli import make_parser, run_command

CLIENTS = (1, 4, 16)
PARTS = ("latency", "overhead", "faults", "soak", "compression")
LARGEST_OVERHEAD = 0.10
LARGEST_GROWTH = 0.05
FAULTS = {
    "swap": "a version is swapped under load",
    "kill": "the server is killed (-9) and started again under load",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.serving",
        __doc__.splitlines()[0],
        [
            "python -m benchmarks.serving --models models",
            "python -m benchmarks.serving --models models --parts soak",
        ],
    )
    parser.add_argument(
        "--models", required=True, metavar="DIR", help="folder of versions; created if absent"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument(
        "--seconds", type=float, default=30, help="duration of each load (default: 30)"
    )
    parser.add_argument(
        "--soak-seconds", type=float, default=300, help="duration of the soak test (default: 300)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=2,
        help="volumes per measurement of the overhead (default: 2)",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(64, 512, 512),
        metavar=("Z", "Y", "X"),
        help="their shape",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    models = Path(arguments.models)
    if not models.is_dir():
        export_random(models / "1", seed=1)
    measures: dict[str, Callable[[], dict]] = {
        "latency": lambda: latency(models, arguments.seconds),
        "overhead": lambda: overhead(models, tuple(arguments.shape), arguments.repeats),
        "faults": lambda: faults(models, arguments.seconds),
        "soak": lambda: soak(models, arguments.soak_seconds),
        "compression": compression,
    }
    measured = {part: measures[part]() for part in arguments.parts}
    figures = dict(read_report("serving")["figures"]) | measured
    write_report(
        "serving",
        figures,
        _goals(figures),
        versions("tensorflow", "grpcio", "numpy"),
        {"window_zyx": WINDOW_ZYX, "seconds": arguments.seconds},
    )


def latency(models: Path, seconds: float) -> dict:
    """Returns latency quantiles and throughput of one-window volumes for several numbers of clients."""
    rows = []
    expected = answers(models)
    with running(models) as server:
        load(server.address, 1, 2, expected)
        for clients in CLIENTS:
            begin = time.perf_counter()
            met = load(server.address, clients, seconds, expected)
            elapsed = time.perf_counter() - begin
            p50, p95, p99 = np.quantile(met.seconds, [0.5, 0.95, 0.99]).tolist()
            rows.append(
                {
                    "clients": clients,
                    "volumes": len(met.seconds),
                    "p50_s": p50,
                    "p95_s": p95,
                    "p99_s": p99,
                    "volumes_per_minute": 60 * len(met.seconds) / elapsed,
                    "errors": len(met.errors),
                    "wrong": met.wrong,
                }
            )
        memory, start = server.memory_mib(), server.start_seconds
    print_table(rows[0], [[f"{value:.4g}" for value in row.values()] for row in rows])
    return {"rows": rows, "server_memory_mib": memory, "server_start_seconds": start}


def overhead(models: Path, shape_zyx: tuple[int, int, int], repeats: int) -> dict:
    """Returns the median time of a large volume in this process and through the server."""
    from ahnet_tf.inference.predictor import open_predictor
    from ahnet_tf.inference.segment import segment_volume
    from preprocessing.volumes.geometry import Volume
    from serving.client.sync import AHNetClient

    voxels = np.random.default_rng(1).integers(-1000, 1000, shape_zyx[::-1]).astype(np.int16)
    volume = Volume(voxels, np.diag([0.8, 0.8, 2.5, 1.0]))
    seconds: dict[str, list[float]] = {"here": [], "served": []}
    predictor = open_predictor(models)
    with running(models) as server, AHNetClient(server.address) as client:
        ways = {
            "here": lambda: segment_volume(volume, predictor),
            "served": lambda: client.segment(volume),
        }
        first = small_volume()
        segment_volume(first, predictor)
        client.segment(first)
        labels = {}
        for _ in range(repeats):
            for name, way in ways.items():
                begin = time.perf_counter()
                labels[name] = way().labels
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    different = float(np.mean(labels["here"] != labels["served"]))
    figures = {
        "shape_zyx": list(shape_zyx),
        "seconds_here": medians["here"],
        "seconds_served": medians["served"],
        "overhead": medians["served"] / medians["here"] - 1,
        "voxels_that_differ": different,
    }
    print_table(("", "seconds"), [(name, f"{value:.2f}") for name, value in medians.items()])
    return figures


def faults(models: Path, seconds: float) -> dict:
    """Returns errors and latency while a version was replaced, and while the server was killed."""
    swapped = models.parent / f"{models.name}-swap"
    for version in (1, 2):
        if not (swapped / str(version)).is_dir():
            export_random(swapped / f"{version}.export", seed=version)
            (swapped / f"{version}.export").rename(swapped / str(version))
    expected = answers(swapped)
    waiting = (swapped / "2").rename(swapped / "2.waiting")
    with running(swapped) as server, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, server.address, 4, seconds, expected)
        time.sleep(seconds / 3)
        waiting.rename(swapped / "2")
        swap = _met(loading.result())
    server = Server(models)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, server.address, 4, seconds + 30, answers(models))
        time.sleep(seconds / 3)
        server.end(signal.SIGKILL)
        server = Server(models, port=server.port)
        kill = _met(loading.result())
    server.end()
    print_table(("fault", *swap), [("swap", *swap.values()), ("kill -9", *kill.values())])
    return {"swap": swap, "kill": kill}


def _met(met: Load) -> dict:
    return {
        "volumes": len(met.seconds),
        "slowest_s": max(met.seconds),
        "errors": len(met.errors),
        "wrong": met.wrong,
    }


def soak(models: Path, seconds: float) -> dict:
    """Returns how the server's memory grew over a long load, from its second fifth to its last."""
    expected = answers(models)
    memory: list[float] = []
    done = threading.Event()
    with running(models) as server, ThreadPoolExecutor(1) as pool:

        def watch() -> None:
            while not done.wait(seconds / 100):
                memory.append(server.memory_mib())

        watching = pool.submit(watch)
        met = _met(load(server.address, 4, seconds, expected))
        done.set()
        watching.result()
    fifth = len(memory) // 5
    early, late = max(memory[fifth : 2 * fifth]), max(memory[-fifth:])
    figures = {
        "seconds": seconds,
        **met,
        "memory_early_mib": early,
        "memory_late_mib": late,
        "growth": late / early - 1,
    }
    print_table(figures, [[f"{value:.5g}" for value in figures.values()]])
    return figures


def compression(repeats: int = 5) -> dict:
    """Returns how far gzip shrinks a request with a window of CT, and the bandwidth below which it pays."""
    from preprocessing.phantom.ct import make_case

    voxels = make_case(seed=0)[0].voxels.astype(np.int16).T
    z, y, x = (min(pair) for pair in zip(voxels.shape, WINDOW_ZYX, strict=True))
    content = np.ascontiguousarray(voxels[:z, -y:, -x:]).tobytes()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        packed = gzip.compress(content, 6)
        gzip.decompress(packed)
        seconds.append(time.perf_counter() - begin)
    saved_bits = 8 * (len(content) - len(packed))
    figures = {
        "request_mib": len(content) / 2**20,
        "share_left": len(packed) / len(content),
        "seconds": statistics.median(seconds),
        "pays_below_mbit_s": saved_bits / statistics.median(seconds) / 1e6,
    }
    print_table(figures, [[f"{value:.3g}" for value in figures.values()]])
    return figures


def _goals(figures: dict) -> list[dict]:
    goals = []
    if "overhead" in figures:
        name = "overhead of the server over prediction in the same process"
        goals.append(goal(name, "<=", LARGEST_OVERHEAD, figures["overhead"]["overhead"]))
    if "faults" in figures:
        for fault in ("swap", "kill"):
            for what in ("errors", "wrong"):
                name = f"{what} while {FAULTS[fault]}, clients trying again"
                goals.append(goal(name, "==", 0, figures["faults"][fault][what]))
    if "soak" in figures:
        name = "growth of the server's memory over the soak"
        goals.append(goal(name, "<=", LARGEST_GROWTH, figures["soak"]["growth"]))
        goals.append(goal("errors in the soak", "==", 0, figures["soak"]["errors"]))
    return goals


if __name__ == "__main__":
    sys.exit(main())
