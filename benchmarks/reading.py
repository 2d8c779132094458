"""Speed of reading and augmentation, and how long a training step waits for its batch.

python -m benchmarks.reading [--batches 80]

Patches a second from TFRecords to batched tensors, without augmentation, with the default one and with
every change on each patch, on one core and on two; the same from one file and from a thousand; then
the training loop compared to the same step with a batch in memory. Each patch size and number of cores
is measured in its own process.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np

from ahnet_tf.config import AugmentationConfig
from ahnet_tf.presets import run_config
from benchmarks.peers import Worker
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.settings import to_dict
from preprocessing.tasks import PRESETS, Task

SHAPES = {"small": (16, 128, 128), "full": (32, 128, 128)}
# Records of the main data set: more than two shuffle windows of the larger patches.
RECORDS = 192
STEPS = {"ct_liver_small": 40, "ct_liver": 8}
SHAPE_OF = {"ct_liver_small": "small", "ct_liver": "full"}
AUGMENTATIONS = {
    "off": None,
    "default": AugmentationConfig(),
    "all": AugmentationConfig(
        flip_z_probability=0.5, warp_probability=1.0, padding_probability=1.0
    ),
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.reading", __doc__.splitlines()[0], ["python -m benchmarks.reading"]
    )
    parser.add_argument(
        "--batches", type=int, default=80, help="timed batches of 2 patches (default: 80)"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = {
            name: attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=shape)
            for name, shape in SHAPES.items()
        }
        for shape, task in tasks.items():
            write_records(folder / shape, task, [RECORDS // 4] * 4)
            write_records(folder / f"{shape}-eval", task, [1])
        reading = _reading(folder, tasks, arguments.batches)
        spread = _spread(folder, tasks["small"], arguments.batches)
        training = _training(folder, tasks)
    goals = [
        goal(
            f"{row['preset']}: share of the training loop spent waiting for data",
            "<=",
            0.05,
            row["waiting_share"],
        )
        for row in training
    ]
    goals += [
        goal(
            f"{row['preset']}: seconds of a step that reads, to one with its batch at hand",
            "<=",
            1.1,
            row["step_seconds"] / row["step_alone_seconds"],
        )
        for row in training
    ]
    goals.append(
        goal(
            "memory of reading beyond TensorFlow's own, in shuffle windows of 128 MiB",
            "<=",
            6,
            max(row["memory_mib"] for row in spread) / 128,
        )
    )
    goals.append(
        goal(
            "patches a second from 1,000 files, to those from one",
            ">=",
            0.7,
            spread[1]["patches_per_second"] / spread[0]["patches_per_second"],
        )
    )
    goals.append(
        goal("seconds to check 1,000 files of a record each", "<=", 5, spread[1]["scan_seconds"])
    )
    write_report(
        "reading",
        {"reading": reading, "files": spread, "training": training},
        goals,
        versions("tensorflow", "numpy"),
        {"batches": arguments.batches, "records": RECORDS, "batch_size": 2, "steps": STEPS},
    )


def _reading(folder: Path, tasks: dict[str, Task], batches: int) -> list[dict]:
    rows = []
    for cores, shape in itertools.product((1, 2), SHAPES):
        found = _read(folder / shape, tasks[shape], AUGMENTATIONS, cores, batches)
        rows += [
            {
                "patch": shape,
                "augmentation": kind,
                "cores": cores,
                "patches_per_second": measured["patches_per_second"],
            }
            for kind, measured in zip(AUGMENTATIONS, found, strict=True)
        ]
    print_table(
        ("patch", "augmentation", "cores", "patches/s"),
        [
            (
                " x ".join(map(str, SHAPES[row["patch"]])),
                row["augmentation"],
                row["cores"],
                f"{row['patches_per_second']:.0f}",
            )
            for row in rows
        ],
    )
    return rows


def _spread(folder: Path, task: Task, batches: int) -> list[dict]:
    """Reads equally many records from one file and from a thousand, also from the end of an epoch."""
    layouts = {"one": [1000], "thousand": [0, 0, 4, *[1] * 996, 0]}
    rows = []
    for name, counts in layouts.items():
        write_records(folder / name, task, counts)
        found = _read(folder / name, task, ["default"], 2, batches, first_record=998)
        rows.append({"files": len(counts)} | found[0])
    print()
    print_table(
        ("files", "patches/s", "MiB", "scan s", "s to the first batch at the end of an epoch"),
        [
            (
                row["files"],
                f"{row['patches_per_second']:.0f}",
                f"{row['memory_mib']:.0f}",
                f"{row['scan_seconds']:.2f}",
                f"{row['first_batch_seconds']:.2f}",
            )
            for row in rows
        ],
    )
    return rows


def _read(
    folder: Path,
    task: Task,
    augmentations: Iterable[str],
    cores: int,
    batches: int,
    first_record: int = 0,
) -> list[dict]:
    rows = []
    with Worker(sys.executable, "benchmarks.reading_worker", QUIET) as worker:
        before = worker.ask(do="use", cores=cores)
        for kind in augmentations:
            config = AUGMENTATIONS[kind]
            found = worker.ask(
                do="read",
                folder=str(folder),
                task=task.to_dict(),
                augmentation=config and to_dict(config),
                batch_size=2,
                batches=batches,
                start_step=first_record // 2,
            )
            found["patches_per_second"] = 2 / found.pop("batch_seconds")
            found["memory_mib"] = found.pop("peak_memory_mib") - before
            rows.append(found)
    return rows


def _training(folder: Path, tasks: dict[str, Task]) -> list[dict]:
    """Trains the 3D stage of each preset with the default augmentation, on all cores."""
    rows = []
    for preset, steps in STEPS.items():
        shape = SHAPE_OF[preset]
        augmentation = [f"{name}={value}" for name, value in to_dict(AugmentationConfig()).items()]
        every = [f"{name}={steps}" for name in ("steps", "evaluate_every", "checkpoint_every")]
        settings = [*augmentation, *every, "warmup_steps=1", f"log_every={steps // 4}"]
        config = run_config(tasks[shape], preset=preset, settings=settings).stages["3d"]
        with Worker(sys.executable, "benchmarks.reading_worker", QUIET) as worker:
            worker.ask(do="use", cores=None)
            found = worker.ask(
                do="train",
                folder=str(folder / shape),
                eval_folder=str(folder / f"{shape}-eval"),
                task=tasks[shape].to_dict(),
                model=to_dict(config.model),
                training=to_dict(config.training),
                output=str(folder / preset),
                repeats=steps // 2,
            )
        loop = found["rows"]
        rows.append(
            {
                "preset": preset,
                "patch": shape,
                "step_alone_seconds": statistics.median(found["alone"]),
                "step_seconds": statistics.median(
                    config.training.batch_size / row["patches_per_second"] for row in loop
                ),
                "waiting_share": statistics.mean(row["waiting_share"] for row in loop),
            }
        )
    print()
    print_table(
        ("AH-Net", "patch", "step alone s", "step in the loop s", "waiting"),
        [
            (
                row["preset"],
                " x ".join(map(str, SHAPES[row["patch"]])),
                f"{row['step_alone_seconds']:.3f}",
                f"{row['step_seconds']:.3f}",
                f"{row['waiting_share']:.2%}",
            )
            for row in rows
        ],
    )
    return rows


def write_records(folder: Path, task: Task, counts: Sequence[int]) -> None:
    """Writes a file for each count of records; 0 gives an empty file, as small splits have."""
    import tensorflow as tf

    folder.mkdir()
    patches = _patches(task)
    for number, count in enumerate(counts):
        with tf.io.TFRecordWriter(str(folder / f"{number:05d}.tfrecord")) as writer:
            for record in itertools.islice(patches, count):
                writer.write(record)


def _patches(task: Task) -> Iterator[bytes]:
    """Yields eight patches of noise with a box of liver, repeatedly."""
    from preprocessing.records.schema import Patch, encode_patch

    rng = np.random.default_rng(0)
    label = np.zeros(task.patch_shape_zyx, np.uint8)
    label[:, 32:96, 32:96] = 1
    counts = tuple(np.bincount(label.ravel(), minlength=len(task.class_names)).tolist())
    patches = [
        encode_patch(
            Patch(
                image_zyx=rng.integers(-200, 250, label.shape).astype(task.image_dtype),
                label_zyx=label,
                case_id=f"case-{number}",
                source="noise",
                index=0,
                origin_zyx=(0, 0, 0),
                valid_zyx=label.shape,
                volume_shape_zyx=label.shape,
                spacing_mm=(0.8, 0.8, 2.5),
                intensity_quantiles=(-200.0, 25.0, 250.0),
                case_label_voxels=counts,
            ),
            task,
        )
        for number in range(8)
    ]
    return itertools.cycle(patches)


if __name__ == "__main__":
    sys.exit(main())
