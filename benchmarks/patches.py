"""How many training patches a case needs: Dice on unseen cases and storage, by `patches_per_case`.

python -m benchmarks.patches [--seeds 3] [--work DIR]

Small AH-Nets learn from four synthetic CT cases whose patches are a fraction of the plane. All make the
same number of steps: the more patches a case has, the less often each is seen. With so many that each is
seen once or twice, the training is one that draws anew from whole volumes, which are stored beside for
comparison. Finished trainings in --work are not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from ahnet_tf.config import ModelConfig, TrainingConfig
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.convert import convert
from preprocessing.files import write_json
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.phantom.dataset import write_cases
from preprocessing.tasks import PRESETS

PATCHES = (8, 16, 64, 256)
CASES, UNSEEN, FIRST_UNSEEN, DATA_SEED = 4, 12, 1000, 21
PHANTOM = PhantomSettings(
    shape_xyz=(112, 112, 24), spacing_mm=(2.5, 2.5, 5.0), fewest_tumours=1, most_tumours=3
)
TASK = attrs.evolve(
    PRESETS["ct_liver"], name="patches", patch_shape_zyx=(8, 48, 48), foreground_fraction=0.75
)
MODEL = ModelConfig(width=0.25, blocks=(1, 1, 1, 1), growth=8)
TRAINING = TrainingConfig(
    steps=500,
    batch_size=4,
    learning_rate=4e-3,
    warmup_steps=20,
    class_weights=(0.75, 1.0, 4.0),
    flip_probability=0.0,
    evaluate_every=0,
    checkpoint_every=500,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    purpose = __doc__.splitlines()[0]
    parser = make_parser("benchmarks.patches", purpose, ["python -m benchmarks.patches"])
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    parser.add_argument("--work", metavar="DIR", help="keep cases, records and networks here")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary)
        write_cases(work / "cases", CASES, DATA_SEED, settings=PHANTOM, overwrite=True)
        figures = [_measure(work, patches, arguments.seeds) for patches in PATCHES]
    columns = ("patches_per_case", "times_seen", "mb_per_case", "dice_liver", "dice_tumour")
    print_table(columns, [[figure[column] for column in columns] for figure in figures])
    volume_mb = 3 * PHANTOM.shape_xyz[0] * PHANTOM.shape_xyz[1] * PHANTOM.shape_xyz[2] / 1e6
    settings = {"cases": CASES, "unseen": UNSEEN, "steps": TRAINING.steps, "volume_mb": volume_mb}
    few, _, chosen, many = (figure["dice_liver"] + figure["dice_tumour"] for figure in figures)
    goals = [
        goal("64 patches against 8, sum of both Dice", ">=", 0.0, chosen - few),
        goal("256 patches against 64, sum of both Dice", "<=", 0.02, many - chosen),
    ]
    write_report("patches", figures, goals, versions("tensorflow", "numpy"), settings)


def _measure(work: Path, patches: int, seeds: int) -> dict[str, Any]:
    """Returns storage and mean Dice of trainings on so many patches of each case."""
    records = work / f"records_{patches}"
    task = attrs.evolve(TASK, patches_per_case=patches)
    if not (records / "task.json").is_file():
        convert([str(work / "cases")], str(records), task, eval_fraction=0.0, progress=False)
    size = sum(path.stat().st_size for path in (records / "train").iterdir())
    scores = [_score(work, records, patches, seed) for seed in range(seeds)]
    return {
        "patches_per_case": patches,
        "times_seen": round(TRAINING.steps * TRAINING.batch_size / (patches * CASES), 1),
        "mb_per_case": round(size / CASES / 1e6, 2),
        **{name: round(statistics.mean(s[name] for s in scores), 3) for name in scores[0]},
        "seeds": scores,
    }


def _score(work: Path, records: Path, patches: int, seed: int) -> dict[str, float]:
    """Trains a network and returns its mean Dice over the unseen cases."""
    from ahnet_tf.data.records import find_records
    from ahnet_tf.evaluation.lits import LIVER, TUMOUR, dice
    from ahnet_tf.inference.predictor import open_predictor
    from ahnet_tf.inference.segment import segment_volume
    from ahnet_tf.training.trainer import train_network

    result = work / f"result_{patches}_{seed}.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    task = attrs.evolve(TASK, patches_per_case=patches)
    run, training = work / f"run_{patches}_{seed}", attrs.evolve(TRAINING, seed=seed)
    train_network(MODEL, training, task, find_records(records / "train"), (), run)
    predictor = open_predictor(run / "last")
    # Whole planes instead of windows of a patch's size: many times faster.
    window = (TASK.patch_shape_zyx[0], *PHANTOM.shape_xyz[1::-1])
    settings = attrs.evolve(predictor.settings, window_shape_zyx=window)
    predictor = dataclasses.replace(predictor, settings=settings)
    liver, tumour = [], []
    for number in range(FIRST_UNSEEN, FIRST_UNSEEN + UNSEEN):
        image, label = make_case(DATA_SEED, number, PHANTOM)
        found = segment_volume(image, predictor).labels
        liver.append(dice(found >= LIVER, label.voxels >= LIVER))
        tumour.append(dice(found == TUMOUR, label.voxels == TUMOUR))
    scores = {"dice_liver": statistics.mean(liver), "dice_tumour": statistics.mean(tumour)}
    write_json(result, scores)
    return scores


if __name__ == "__main__":
    sys.exit(main())
