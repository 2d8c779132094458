"""Trainings of tiny networks: they learn, go on after a kill, and share steps among replicas exactly."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.devices import mirrored_strategy
from ahnet_tf.history import read_history
from ahnet_tf.nets import build_network, load_network
from ahnet_tf.nets.checkpoint import save_network
from ahnet_tf.steps import make_evaluation, predicted_classes
from ahnet_tf.training import start_from, train_network
from preprocessing.errors import InputError, ModelError, SettingsError
from preprocessing.records import Patch, encode_patch
from preprocessing.tasks import Task

TASK = Task("toy", ("background", "liver", "tumour"), (-200.0, 250.0), patch_shape_zyx=(4, 32, 32))
MODEL = ModelConfig(architecture="unet2d", width=0.125, norm="group")
TRAINING = TrainingConfig(
    steps=8,
    batch_size=2,
    warmup_steps=2,
    learning_rate=3e-3,
    class_weights=(0.5, 1.0, 2.0),
    evaluate_every=4,
    checkpoint_every=4,
    log_every=2,
    seed=5,
)


def toy_patch(number: int, split: str) -> Patch:
    """A bright box (liver) with a dark core (tumour) in noise, somewhere in the plane."""
    rng = np.random.default_rng([number, split == "eval"])
    image = rng.normal(-150, 20, (4, 32, 32))
    label = np.zeros((4, 32, 32), np.uint8)
    y, x = rng.integers(2, 14, 2)
    label[:, y : y + 16, x : x + 16] = 1
    label[:, y + 5 : y + 11, x + 5 : x + 11] = 2
    image += np.select([label == 1, label == 2], [250.0, 130.0], 0.0)
    counts = np.bincount(label.ravel(), minlength=3)
    return Patch(
        image_zyx=image.astype(np.int16),
        label_zyx=label,
        case_id=f"{split}-{number}",
        source="toy",
        index=0,
        origin_zyx=(0, 0, 0),
        valid_zyx=(4, 32, 32),
        volume_shape_zyx=(4, 32, 32),
        spacing_mm=(1.0, 1.0, 5.0),
        intensity_quantiles=(-200.0, -150.0, 100.0),
        case_label_voxels=tuple(int(n) for n in counts),
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder as preprocessing.convert writes it, and the record files of its splits."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "task.json").write_text(json.dumps(TASK.to_dict()))
    for split, count in (("train", 6), ("eval", 3)):
        (folder / split).mkdir()
        with tf.io.TFRecordWriter(str(folder / split / "a.tfrecord.gz"), "GZIP") as writer:
            for number in range(count):
                writer.write(encode_patch(toy_patch(number, split), TASK))
    return folder


def train(records, output, model=MODEL, training=TRAINING, **options):
    files = [[str(records / split / "a.tfrecord.gz")] for split in ("train", "eval")]
    return train_network(model, training, TASK, *files, output, progress=False, **options)


@pytest.fixture(scope="module")
def finished(records, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, train(records, output)


def last_weights(output):
    return load_network(output / "last")[0].get_weights()


def test_a_run_leaves_a_network_its_course_and_its_scores(finished):
    output, result = finished
    rows = read_history(output / "history.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if not np.isnan(row["dice_liver"])] == [4, 8]
    assert rows[0]["learning_rate"] == pytest.approx(3e-3)
    assert all(0 <= row["waiting_share"] <= 1 for row in rows)
    assert all(
        row["voxels_per_second"] / row["patches_per_second"] == pytest.approx(4 * 32 * 32, rel=1e-4)
        for row in rows
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.steps == 8
    speeds = sorted(row["patches_per_second"] for row in rows)
    assert speeds[0] <= result.patches_per_second <= speeds[-1]
    assert 0 <= result.waiting_share < 1
    assert result.best_step in (4, 8)
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert sorted(evaluation["cases"]) == ["eval-0", "eval-1", "eval-2"]
    network, config = load_network(output)
    assert config == MODEL
    assert sum(np.prod(w.shape) for w in network.trainable_weights) == result.parameters
    assert json.loads((output / "task.json").read_text()) == TASK.to_dict()


def test_without_evaluation_the_last_network_counts(finished, records, tmp_path):
    training = dataclasses.replace(TRAINING, evaluate_every=0)
    files = [str(records / "train" / "a.tfrecord.gz")]
    output = tmp_path / "run"
    result = train_network(MODEL, training, TASK, files, [], output, progress=False)
    # Evaluations change nothing of what is learned.
    for found in (load_network(output)[0].get_weights(), last_weights(output)):
        for one, other in zip(found, last_weights(finished[0]), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (result.best_step, result.dice, result.undefined) == (8, {}, {})
    assert not (output / "evaluation.json").exists()
    assert np.isnan([row["dice_liver"] for row in read_history(output / "history.csv")]).all()
    # The complete run is not repeated.
    assert train_network(MODEL, training, TASK, files, [], output, progress=False) == result


def scalars(output):
    """All scalars in a run's event files: {(name, step): values}."""
    found = {}
    for path in sorted((output / "tensorboard" / "scalars").glob("*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault((value.tag, event.step), []).append(number)
    return found


def check_scalars(output):
    """Each number of the history stands once in the event files, and nothing else."""
    groups = {"training/loss": "loss", "speed/waiting_share": "waiting_share"}
    groups |= {"training/learning_rate": "learning_rate", "dice/tumour": "dice_tumour"}
    found, rows = scalars(output), read_history(output / "history.csv")
    for tag, column in groups.items():
        written = {step: value for (name, step), value in found.items() if name == tag}
        expected = {row["step"]: row[column] for row in rows if not np.isnan(row[column])}
        assert written == {step: [pytest.approx(v, rel=1e-4)] for step, v in expected.items()}


def test_a_run_can_be_looked_at(finished):
    output, _ = finished
    check_scalars(output)
    pictures = []
    for path in (output / "tensorboard" / "pictures").glob("*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            pictures += [(value.tag, event.step) for value in event.summary.value]
    assert pictures == [("evaluation", 4), ("evaluation", 8)]
    for name in ("curves.png", "overlay.png"):
        picture = tf.io.decode_png((output / name).read_bytes()).numpy()
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 10


def test_the_tile_to_look_at_is_that_with_the_most_tumour(tmp_path):
    """The first tile has the most liver and no tumour, the last a part of its tumour."""
    tiles = [toy_patch(number, "eval") for number in range(3)]
    tiles[0] = dataclasses.replace(tiles[0], label_zyx=np.ones((4, 32, 32), np.uint8))
    fewer = np.where(np.arange(32) % 2, tiles[2].label_zyx, 0).astype(np.uint8)
    tiles[2] = dataclasses.replace(tiles[2], label_zyx=fewer)
    path = str(tmp_path / "eval.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for tile in tiles:
            writer.write(encode_patch(tile, TASK))
    network = build_network(MODEL, seed=0)
    strategy = mirrored_strategy(1)
    _, shown = make_evaluation(strategy, network, MODEL, TASK, [path], batch_size=2)()
    np.testing.assert_array_equal(shown.label_zyx, tiles[1].label_zyx)
    np.testing.assert_array_equal(shown.image_zyx, tiles[1].image_zyx)
    assert shown.spacing_mm == (1, 1, 5)
    expected = predicted_classes(network(shown.image_zyx[None, ..., None]), MODEL)[0]
    assert (shown.prediction_zyx != expected.numpy()).mean() < 1e-3


def test_a_finished_run_is_not_repeated(finished, records):
    output, result = finished
    written = (output / "history.csv").stat().st_mtime_ns
    assert train(records, output) == result
    assert (output / "history.csv").stat().st_mtime_ns == written


def test_an_interrupted_run_ends_as_the_undisturbed_one(finished, records, tmp_path):
    """What a kill after step 4 leaves behind, reconstructed from the finished run."""
    undisturbed, result = finished
    output = tmp_path / "resumed"
    shutil.copytree(undisturbed, output)
    shutil.rmtree(output / "last")
    (output / "result.json").unlink()
    for file in (output / "checkpoints").glob("ckpt-8.*"):
        file.unlink()
    newest = 'model_checkpoint_path: "ckpt-4"\nall_model_checkpoint_paths: "ckpt-4"\n'
    (output / "checkpoints" / "checkpoint").write_text(newest)
    resumed = train(records, output)
    assert resumed.steps == result.steps
    assert resumed.loss == pytest.approx(result.loss, rel=1e-4)
    for found, expected in zip(last_weights(output), last_weights(undisturbed), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    check_scalars(output)
    losses = [
        [
            (row["step"], pytest.approx(row["loss"], rel=1e-4))
            for row in read_history(run / "history.csv")
        ]
        for run in (undisturbed, output)
    ]
    assert [step for step, _ in losses[1]] == [2, 4, 6, 8]
    assert [loss for _, loss in losses[0]] == [loss.expected for _, loss in losses[1]]


def test_another_run_in_the_same_folder_is_refused(finished, records):
    output, _ = finished
    changed = TrainingConfig(**{**vars(TRAINING), "learning_rate": 1e-4})
    with pytest.raises(SettingsError, match=r"learning_rate = 0.0001, found 0.003"):
        train(records, output, training=changed)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    records, tmp_path
):
    diverging = TrainingConfig(
        **{**vars(TRAINING), "learning_rate": 1e38, "checkpoint_every": 1, "warmup_steps": 7}
    )
    with pytest.raises(ModelError, match=r"step \d: expected a finite loss .* Try a lower"):
        train(records, tmp_path / "run", training=diverging)
    assert not (tmp_path / "run" / "result.json").exists()


def test_settings_that_do_not_fit_the_task_are_refused(records, tmp_path):
    with pytest.raises(SettingsError, match="classes: expected 3"):
        train(records, tmp_path, model=ModelConfig(classes=2))
    with pytest.raises(SettingsError, match="intensity_window"):
        train(records, tmp_path, model=ModelConfig(intensity_window=(0.0, 1.0)))
    weights = TrainingConfig(**{**vars(TRAINING), "class_weights": (1.0, 2.0)})
    with pytest.raises(SettingsError, match="class_weights"):
        train(records, tmp_path, training=weights)
    with pytest.raises(InputError, match="at least one file"):
        train_network(MODEL, TRAINING, TASK, [], [], tmp_path)
    many = TrainingConfig(**{**vars(TRAINING), "replicas": 64, "batch_size": 64})
    with pytest.raises(SettingsError, match="replicas"):
        train(records, tmp_path, training=many)
    assert not list(tmp_path.iterdir())


def test_all_weights_of_the_same_network_are_taken_and_others_refused(tmp_path):
    source, target = build_network(MODEL, seed=1), build_network(MODEL, seed=2)
    save_network(tmp_path, source, MODEL)
    start_from(tmp_path, target)
    for found, expected in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ModelError):
        start_from(tmp_path / "missing", target)
    with pytest.raises(ModelError):
        start_from(
            source, build_network(ModelConfig(architecture="unet2d", width=0.25, norm="group"))
        )


REPLICAS = """
import numpy as np
from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.devices import mirrored_strategy, set_up_devices
from ahnet_tf.nets import build_network
from ahnet_tf.steps import make_optimizer, make_train_step
set_up_devices(2)
import tensorflow as tf
model_config = ModelConfig(architecture="unet2d", width=0.125, norm="sync_batch")
rng = np.random.default_rng(0)
label = rng.integers(0, 3, (4, 2, 32, 32)).astype(np.uint8)
image = (label[..., None] * 100 + rng.normal(0, 30, label.shape + (1,))).astype(np.float32)
weight = np.ones(label.shape, np.float32)
weight[0], weight[1, 1] = 0, 0
whole = dict(image=image, label=label, weight=weight)
for replicas in (1, 2):
    config = TrainingConfig(
        steps=10, warmup_steps=0, batch_size=4, replicas=replicas, class_weights=(1.0, 2.0, 3.0)
    )
    strategy = mirrored_strategy(replicas)
    assert strategy.num_replicas_in_sync == replicas
    with strategy.scope():
        model = build_network(model_config, seed=0)
    optimizer = make_optimizer(strategy, model, config)
    step = make_train_step(strategy, model, optimizer, model_config, config)
    size = 4 // replicas
    share = lambda context, values: tf.constant(
        values[context.replica_id_in_sync_group * size :][:size]
    )
    batch = {
        name: strategy.experimental_distribute_values_from_function(
            lambda context, values=values: share(context, values)
        )
        for name, values in whole.items()
    }
    for _ in range(3):
        print(*(float(value) for value in step(batch)))
"""


def test_two_replicas_learn_what_one_does_from_the_same_batch():
    script = REPLICAS
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = np.array([line.split() for line in done.stdout.splitlines()], float).reshape(2, 3, 2)
    np.testing.assert_allclose(two[0, 0], one[0, 0], rtol=1e-5)
    np.testing.assert_allclose(two[0, 1], one[0, 1], rtol=2e-4)
    # Adam divides by the size of gradients, also of those that are rounding errors.
    np.testing.assert_allclose(two[1:, 0], one[1:, 0], rtol=2e-3)


@pytest.mark.slow
def test_ahnet_overfits_one_patch(tmp_path):
    small = toy_patch(0, "train")
    shape = (4, 128, 128)
    large = dataclasses.replace(
        small,
        image_zyx=small.image_zyx.repeat(4, axis=1).repeat(4, axis=2),
        label_zyx=small.label_zyx.repeat(4, axis=1).repeat(4, axis=2),
        valid_zyx=shape,
        volume_shape_zyx=shape,
    )
    task = dataclasses.replace(TASK, patch_shape_zyx=shape)
    files = [str(tmp_path / "a.gz")]
    with tf.io.TFRecordWriter(files[0], "GZIP") as writer:
        writer.write(encode_patch(large, task))
    model = ModelConfig(width=0.125, blocks=(1, 1, 1, 1), growth=4, dense_layers=1)
    training = TrainingConfig(
        steps=100,
        batch_size=2,
        warmup_steps=5,
        learning_rate=1e-2,
        loss="cross_entropy",
        class_weights=(1.0, 1.0, 3.0),
        flip_probability=0,
        warp_probability=0,
        intensity_gamma=0,
        intensity_shift=0,
        intensity_scale=0,
        intensity_noise=0,
        padding_probability=0,
        evaluate_every=100,
    )
    result = train_network(model, training, task, files, files, tmp_path / "run", progress=False)
    assert result.dice["liver"] > 0.98
    assert result.dice["tumour"] > 0.98


@pytest.mark.slow
def test_a_killed_command_goes_on_when_it_is_started_again(records, tmp_path):
    """SIGKILL as soon as a checkpoint stands; the same command then ends as an undisturbed run."""
    output = tmp_path / "run"
    command = [sys.executable, "-m", "ahnet_tf.train", "--input", str(records), "--stage", "2d"]
    command += ["--output", str(output), "--preset", "ct_liver_small", "--steps", "40"]
    for setting in ("architecture=unet2d", "width=0.125", "norm=group", "checkpoint_every=2"):
        command += ["--set", f"2d.{setting}"]
    environment = os.environ | {"TF_NUM_INTEROP_THREADS": "2"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    checkpoint = output / "mcgcn" / "checkpoints" / "checkpoint"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment)
    result = json.loads((output / "mcgcn" / "result.json").read_text())
    assert result["steps"] == 40
    rows = read_history(output / "mcgcn" / "history.csv")
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40
