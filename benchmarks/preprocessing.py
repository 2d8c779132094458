"""Conversion of .nii.gz to TFRecords: speed against MONAI and bare decompression, scaling, memory, size.

python -m benchmarks.preprocessing [--repeats 9]

The volume is a real one (3D-IRCADb-01, patient 17) in the folder AHNET_DATA; without AHNET_DATA it is a
phantom of 512x512 slices, which the report names. One case: in turn, the bare decompression of image
and label, the conversion to TFRecords on disk, and MONAI's transforms to the same number of patches in
memory, on one core. The job: Beam's engines on several different cases, on one core and on two. Times don't hold imports.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers import Worker, peer_versions, peers_python
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import read_image, write_image

TASK = PRESETS["ct_liver"]
ONE, TWO = [0], [0, 1]
JOB_CASES = 24
TINY_CASES = 1000
# Memory beyond the voxels: patches in flight, Beam, buffers.
CONSTANT_MIB = 64
THREADS = ["--direct_running_mode", "multi_threading", "--direct_num_workers"]
PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers"]
ENGINES = {
    "in_memory, 1 core": (ONE, ["--direct_running_mode", "in_memory"]),
    "multi_threading 2, 2 cores": (TWO, [*THREADS, "2"]),
    "multi_processing 2, 2 cores": (TWO, [*PROCESSES, "2"]),
}
# Starting processes takes many seconds with little variation.
MOST_PROCESS_TURNS = 3
COMPRESSIONS = {"none": "", "ZLIB": "ZLIB", "GZIP": "GZIP", "GZIP written by isal": "isal"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    examples = ["AHNET_DATA=~/data python -m benchmarks.preprocessing"]
    parser = make_parser("benchmarks.preprocessing", __doc__.splitlines()[0], examples)
    parser.add_argument(
        "--repeats", type=int, default=9, help="timed repetitions of each (default: 9)"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    if not {*TWO} <= os.sched_getaffinity(0):
        raise SettingsError("benchmark", f"the cores {TWO}", sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image, label, what = _volume(folder)
        volume = read_image(image)
        print(f"{what}: {' x '.join(map(str, volume.voxels.shape))} voxels")
        figures = {"volume": {"what": what, "shape_xyz": list(volume.voxels.shape)}}
        figures["case"], goals = _one_case(image, label, volume, folder, arguments.repeats)
        data = _distinct_cases(volume, label, folder / "cases")
        figures["job"], more = _jobs(data, volume, folder, arguments.repeats)
        goals += more
        figures["tiny"] = _tiny(folder)
        figures["compression"] = _compression(image, label, folder, arguments.repeats)
    packages = versions("apache-beam", "tensorflow", "numpy", "isal")
    packages |= peer_versions("torch", "monai")
    settings = {"repeats": arguments.repeats, "task": TASK.name, "job_cases": JOB_CASES}
    write_report("preprocessing", figures, goals, packages, settings)


def _volume(folder: Path) -> tuple[Path, Path, str]:
    data = os.environ.get("AHNET_DATA")
    if data:
        scan = Path(data) / "ircadb01_case17"
        return scan / "ct.nii.gz", scan / "label.nii.gz", "3D-IRCADb-01 patient 17"
    print(
        "AHNET_DATA is not set: measured on a phantom, not on the CT of the page", file=sys.stderr
    )
    settings = PhantomSettings(shape_xyz=(512, 512, 96), spacing_mm=(0.625, 0.625, 1.7))
    write_cases(folder / "phantom", 1, 0, settings=settings)
    names = ("volume-0.nii.gz", "segmentation-0.nii.gz")
    return (*(folder / "phantom" / name for name in names), "phantom")


def _distinct_cases(volume: Volume, label: Path, folder: Path) -> Path:
    """Writes copies of the volume with one voxel changed in each, so that no case is a duplicate."""
    folder.mkdir()
    for number in range(JOB_CASES):
        voxels = volume.voxels.copy(order="F")
        voxels[0, 0, 0] += number
        write_image(folder / f"volume-{number}.nii.gz", Volume(voxels, volume.affine))
        shutil.copyfile(label, folder / f"segmentation-{number}.nii.gz")
    return folder


def _one_case(image: Path, label: Path, volume: Volume, folder: Path, repeats: int):
    files = {"image": str(image), "label": str(label)}
    converted = files | {"task": TASK.name, "folder": str(folder / "case")}
    with ExitStack() as stack:
        ours = stack.enter_context(_ours(ONE))
        peer = stack.enter_context(
            Worker(peers_python(), "benchmarks.monai_loading_worker", {"OMP_NUM_THREADS": "1"})
        )
        peer.ask(
            do="prepare",
            cores=ONE,
            window=TASK.intensity_window,
            patch_shape_xyz=TASK.patch_shape_zyx[::-1],
            patches=TASK.patches_per_case,
            foreground_fraction=TASK.foreground_fraction,
        )
        works = {
            "bare decompression": lambda: ours.ask(do="inflate", **files),
            "training patches": lambda: ours.ask(do="case", split="train", **converted)[0],
            "evaluation tiles": lambda: ours.ask(do="case", split="eval", **converted)[0],
            "MONAI": lambda: peer.ask(do="once", **files)[0],
        }
        seconds = _in_turn(works, repeats, warm_up=2)
    voxels = volume.voxels.size
    figures = [
        {
            "work": name,
            "seconds_median": statistics.median(taken),
            "seconds_least": min(taken),
            "megavoxels_a_second": voxels / statistics.median(taken) / 1e6,
        }
        for name, taken in seconds.items()
    ]
    print_table(
        ("one case, one core", "median s", "least s", "Mvoxel/s"),
        [
            (
                f["work"],
                f"{f['seconds_median']:.3f}",
                f"{f['seconds_least']:.3f}",
                f"{f['megavoxels_a_second']:.0f}",
            )
            for f in figures
        ],
    )
    floor, train, _, monai = (figure["seconds_median"] for figure in figures)
    return figures, [
        goal("times as fast as MONAI, one core", ">=", 4, monai / train),
        goal("share of the bare decompression's speed", ">=", 0.5, floor / train),
    ]


def _jobs(data: Path, volume: Volume, folder: Path, repeats: int):
    with ExitStack() as stack:
        workers, before = {}, {}
        for name, (cores, _) in ENGINES.items():
            workers[name] = stack.enter_context(_ours(cores))
        memory: dict[str, float] = {}

        def run(name: str) -> float:
            taken, peak, cases = workers[name].ask(
                do="job",
                data=str(data),
                output=str(folder / "records"),
                task=TASK.name,
                options=ENGINES[name][1],
                eval_fraction=0.0,
            )
            # Memory of the first job in a fresh process, as with the command.
            memory.setdefault(name, peak)
            if cases != JOB_CASES:
                raise RuntimeError(f"{cases} cases of {JOB_CASES} were converted")
            return taken

        for name, worker in workers.items():
            before[name] = worker.ask(do="prepare", cores=ENGINES[name][0])
        works = {name: (lambda name=name: run(name)) for name in ENGINES}
        few = [name for name in ENGINES if PROCESSES[1] in ENGINES[name][1]]
        seconds = _in_turn(works, repeats, warm_up=1, few=few)
    voxels = volume.voxels.size
    figures = [
        {
            "engine": name,
            "seconds_median": statistics.median(taken),
            "turns": len(taken),
            "megavoxels_a_second": JOB_CASES * voxels / statistics.median(taken) / 1e6,
            "memory_growth_mib": memory[name] - before[name],
        }
        for name, taken in seconds.items()
    ]
    print()
    print_table(
        (f"job of {JOB_CASES} cases", "median s", "Mvoxel/s", "memory growth MiB"),
        [
            (
                f["engine"],
                f"{f['seconds_median']:.2f}",
                f"{f['megavoxels_a_second']:.0f}",
                f"{f['memory_growth_mib']:.0f}",
            )
            for f in figures
        ],
    )
    one, two, _ = figures
    limit = 4 * voxels / 2**20 + CONSTANT_MIB
    return figures, [
        goal("two cores against one", ">=", 1.7, one["seconds_median"] / two["seconds_median"]),
        goal(
            f"memory growth in MiB, of 4 bytes a voxel + {CONSTANT_MIB} MiB",
            "<=",
            math.floor(limit),
            one["memory_growth_mib"],
        ),
    ]


def _tiny(folder: Path) -> dict:
    data = folder / "tiny"
    write_cases(data, TINY_CASES, 0, settings=PhantomSettings((16, 16, 4), (20.0, 20.0, 40.0)))
    # Small patches: this measures the cost per case, not per byte.
    write_json(folder / "tiny.json", {"base": TASK.name, "patch_shape_zyx": (4, 16, 16)})
    with _ours(TWO) as worker:
        before = worker.ask(do="prepare", cores=TWO)
        seconds, memory, cases = worker.ask(
            do="job",
            data=str(data),
            output=str(folder / "tiny_records"),
            task=str(folder / "tiny.json"),
            options=[],
            eval_fraction=0.2,
        )
    shutil.rmtree(folder / "tiny_records")
    found = {
        "cases": cases,
        "milliseconds_a_case": 1000 * seconds / TINY_CASES,
        "memory_growth_mib": memory - before,
    }
    print(
        f"\n{cases} tiny cases: {found['milliseconds_a_case']:.1f} ms a case, "
        f"memory growth {found['memory_growth_mib']:.0f} MiB"
    )
    return found


def _compression(image: Path, label: Path, folder: Path, repeats: int) -> list[dict]:
    output = folder / "compression"
    files = {"image": str(image), "label": str(label)}
    with _ours(ONE) as worker:
        _, _, entry = worker.ask(
            do="case", split="train", task=TASK.name, folder=str(output), **files
        )
        source = str(output / "train" / entry["shards"][0]["name"])
        targets = {name: str(output / name) for name in COMPRESSIONS}
        sizes = {}

        def write(name: str) -> float:
            request = {"source": source, "target": targets[name]}
            taken, sizes[name] = worker.ask(
                do="write_records", compression=COMPRESSIONS[name], **request
            )
            return taken

        def read(name: str) -> float:
            request = {"path": targets[name], "compression": COMPRESSIONS[name]}
            taken, count = worker.ask(do="read_records", task=TASK.name, **request)
            return taken / count

        turns = min(repeats, 7)
        writing = _in_turn({n: (lambda n=n: write(n)) for n in COMPRESSIONS}, turns, warm_up=1)
        reading = _in_turn({n: (lambda n=n: read(n)) for n in COMPRESSIONS}, turns, warm_up=1)
    figures = [
        {
            "compression": name,
            "write_milliseconds_a_patch": 1000
            * statistics.median(writing[name])
            / entry["patches"],
            "size_of_uncompressed": sizes[name] / sizes["none"],
            "read_milliseconds_a_patch": 1000 * statistics.median(reading[name]),
        }
        for name in COMPRESSIONS
    ]
    print()
    print_table(
        ("records, one core", "write ms a patch", "size", "read ms a patch"),
        [
            (
                f["compression"],
                f"{f['write_milliseconds_a_patch']:.2f}",
                f"{f['size_of_uncompressed']:.2f}",
                f"{f['read_milliseconds_a_patch']:.2f}",
            )
            for f in figures
        ],
    )
    return figures


def _ours(cores: Sequence[int]) -> Worker:
    worker = Worker(sys.executable, "benchmarks.conversion_worker", {"TF_CPP_MIN_LOG_LEVEL": "3"})
    worker.ask(do="prepare", cores=cores)
    return worker


def _in_turn(works, repeats: int, *, warm_up: int, few: Sequence[str] = ()) -> dict:
    """Returns the seconds of each task, run in alternation; those in `few` are repeated less often."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + repeats):
        for name, work in works.items():
            if name in few and turn >= warm_up + MOST_PROCESS_TURNS:
                continue
            taken = work()
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
