"""Trainings of tiny networks: results, resuming, errors, and exact sharing among replicas."""

import contextlib
import dataclasses
import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess

import attrs
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks import build_network
from ahnet_tf.training.checkpoints import KEPT, report_last_checkpoint, restore
from ahnet_tf.training.distribution import training_strategy
from ahnet_tf.training.logs import read_history
from ahnet_tf.training.run_folder import inputs_of, locked
from ahnet_tf.training.train_state import Progress, start_from
from ahnet_tf.training.trainer import train_network
from ahnet_tf.training.validation import make_evaluation, predicted_classes
from ahnet_tf.weights.checkpoint import load_network, save_network
from preprocessing.errors import InputError, ModelError, SettingsError, Stopped
from preprocessing.records.schema import encode_patch
from preprocessing.tasks import load_task
from tests.ahnet_tf.forks import Strike
from tests.ahnet_tf.toy import MODEL, TASK, TRAINING, toy_patch


@pytest.fixture(scope="module")
def records(toy_records):
    return toy_records


def train(records, output, model=MODEL, training=TRAINING, **options):
    files = [[str(records / split / "a.tfrecord.gz")] for split in ("train", "eval")]
    return train_network(model, training, TASK, *files, output, progress=False, **options)


@pytest.fixture(scope="module")
def finished(records, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, train(records, output)


def last_weights(output):
    return load_network(output / "last")[0].get_weights()


@pytest.mark.slow
def test_run_writes_network_history_and_scores(finished):
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


@pytest.mark.slow
def test_without_evaluation_the_last_network_counts(finished, records, tmp_path):
    training = attrs.evolve(TRAINING, evaluate_every=0)
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
    # The complete run is not repeated. Texts, since NaN is not equal to itself.
    again = train_network(MODEL, training, TASK, files, [], output, progress=False)
    assert str(again) == str(result)


def scalars(output):
    """Returns all scalars in a run's event files: {(name, step): values}."""
    found = {}
    for path in sorted((output / "tensorboard" / "scalars").glob("*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault((value.tag, event.step), []).append(number)
    return found


def check_scalars(output):
    """Checks that the event files hold each number of the history once, and nothing else."""
    groups = {"training/loss": "loss", "speed/waiting_share": "waiting_share"}
    groups |= {"training/learning_rate": "learning_rate", "dice/tumour": "dice_tumour"}
    found, rows = scalars(output), read_history(output / "history.csv")
    for tag, column in groups.items():
        written = {step: value for (name, step), value in found.items() if name == tag}
        expected = {row["step"]: row[column] for row in rows if not np.isnan(row[column])}
        assert written == {step: [pytest.approx(v, rel=1e-4)] for step, v in expected.items()}


def test_run_writes_tensorboard_and_pictures(finished):
    output, _ = finished
    check_scalars(output)
    pictures = []
    for path in (output / "tensorboard" / "pictures").glob("*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            pictures += [(value.tag, event.step) for value in event.summary.value]
    assert pictures == [("evaluation", 4), ("evaluation", 8)]
    picture = tf.io.decode_png((output / "overlay.png").read_bytes()).numpy()
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 10


@pytest.mark.slow
def test_tiles_within_a_breast_are_drawn(tmp_path):
    """A tile of normalised tomosynthesis without air, from which no breast can be told."""
    task = attrs.evolve(
        load_task("dbt_lesion_small"),
        resampling="keep",
        spacing_mm=None,
        patch_shape_zyx=(4, 32, 32),
    )
    path = str(tmp_path / "breast.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(2):
            patch = toy_patch(number, "eval")
            mass = (patch.label_zyx == 2).astype(np.uint8)
            tissue = dataclasses.replace(
                patch,
                image_zyx=(8000 + 10 * patch.image_zyx).astype(np.uint16),
                label_zyx=mass,
                heat_map_zyx=200 * mass,
                case_label_voxels=(4 * (32 * 32 - 36), 4 * 36),
            )
            writer.write(encode_patch(tissue, task))
    model = attrs.evolve(
        MODEL, classes=2, activation="sigmoid", intensity_window=task.intensity_window
    )
    training = attrs.evolve(
        TRAINING, steps=1, warmup_steps=0, class_weights=(1.0, 5.0), elastic_mm=0.5
    )
    train_network(model, training, task, [path], [path], tmp_path / "run", progress=False)
    picture = tf.io.decode_png((tmp_path / "run" / "overlay.png").read_bytes()).numpy()
    assert picture.std() > 10


def test_shown_tile_has_the_most_tumour(tmp_path):
    """The first tile has the most liver and no tumour, the last a part of its tumour.

    Of the second, with the most tumour, some columns count for another tile.
    """
    tiles = [toy_patch(number, "eval") for number in range(3)]
    tiles[0] = dataclasses.replace(tiles[0], label_zyx=np.ones((4, 32, 32), np.uint8))
    tiles[1] = dataclasses.replace(tiles[1], valid_zyx=(4, 32, 28))
    fewer = np.where(np.arange(32) % 2, tiles[2].label_zyx, 0).astype(np.uint8)
    tiles[2] = dataclasses.replace(tiles[2], label_zyx=fewer)
    path = str(tmp_path / "eval.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for tile in tiles:
            writer.write(encode_patch(tile, TASK))
    network = build_network(MODEL, seed=0)
    strategy = training_strategy(1)
    _, shown = make_evaluation(strategy, network, MODEL, TASK, [path], batch_size=2)()
    np.testing.assert_array_equal(shown["label"], tiles[1].label_zyx[..., :28])
    np.testing.assert_array_equal(shown["image"][..., 0], tiles[1].image_zyx[..., :28])
    assert shown["spacing_mm"].tolist() == [1, 1, 5]
    whole = tiles[1].image_zyx[None, ..., None].astype(np.float32)
    expected = predicted_classes(network(whole), MODEL)[0, ..., :28]
    assert (shown["prediction"] != expected.numpy()).mean() < 1e-3


def test_a_finished_run_is_not_repeated(finished, records):
    output, result = finished
    written = (output / "history.csv").stat().st_mtime_ns
    assert train(records, output) == result
    assert (output / "history.csv").stat().st_mtime_ns == written


def interrupted(finished, output):
    """Makes the folder of a run killed after step 4 from that of the finished run."""
    shutil.copytree(finished[0], output)
    shutil.rmtree(output / "last")
    (output / "result.json").unlink()
    for file in (output / "checkpoints").glob("ckpt-8.*"):
        file.unlink()
    newest = 'model_checkpoint_path: "ckpt-4"\nall_model_checkpoint_paths: "ckpt-4"\n'
    (output / "checkpoints" / "checkpoint").write_text(newest)
    return output


@pytest.mark.slow
def test_resumed_run_ends_as_the_uninterrupted_one(finished, records, tmp_path):
    undisturbed, result = finished
    output = interrupted(finished, tmp_path / "resumed")
    (output / "checkpoints" / "ckpt-6_temp").mkdir()
    (output / ".weights.safetensors.abcd_123").mkdir()
    resumed = train(records, output)
    assert not list(output.rglob("*_temp"))
    assert not list(output.rglob(".*"))
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


def test_a_request_to_stop_before_the_first_step(records, tmp_path):
    output = tmp_path / "stopped"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        Strike(signal.SIGINT, 0).prepare(patch.setattr)
        with pytest.raises(Stopped) as caught:
            train(records, output)
    text = str(caught.value)
    assert (
        text == f"{output}: stopped by SIGINT before the first step; the same command starts again"
    )
    assert read_history(output / "history.csv") == []
    assert not (output / "checkpoints").exists()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture(params=["limit", "disk"])
def no_room(request, tmp_path):
    """A folder, and a context in which no large file can be written there.

    A limit on the size of files fails writes in the middle of a file; a real full disk needs the right
    to mount one.
    """
    folder = tmp_path / "small"
    folder.mkdir()

    @contextlib.contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def filled():
        filler = folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        # Small files, settings for example, may still be written.
        os.truncate(filler, filler.stat().st_size - 40_960)
        yield
        filler.unlink()

    if request.param == "limit":
        yield folder, limit
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder, filled
    # TensorBoard's files are open for as long as their writers live.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(finished, records, no_room):
    folder, full = no_room
    output = interrupted(finished, folder / "run")
    with full(), pytest.raises(InputError, match="room for the training's files") as caught:
        train(records, output)
    assert f"The last good checkpoint is {output}/checkpoints/ckpt-4. Free disk space" in str(
        caught.value
    )
    assert not list(output.rglob("*_temp"))
    # That it goes on as if nothing had been is the same for either.
    if full.__name__ == "limit":
        assert train(records, output).loss == pytest.approx(finished[1].loss, rel=1e-4)


def test_a_full_disk_in_a_checkpoint_leaves_the_one_before(no_room):
    folder, full = no_room
    progress = Progress()
    big = tf.Variable(tf.random.stateless_normal([100_000], (0, 0)))
    checkpoint = tf.train.Checkpoint(state=progress, big=big)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoints"), max_to_keep=KEPT)
    manager.save(3)
    told = pytest.raises(InputError, match=r"checkpoint is \S+/ckpt-3\. Free disk space")
    with full(), told, report_last_checkpoint(folder, manager):
        manager.save(4)
    found = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert found == ["checkpoint", "ckpt-3.data-00000-of-00001", "ckpt-3.index"]
    restore(checkpoint, folder / "checkpoints", say=pytest.fail)


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_one_before(finished, records, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    (output / "result.json").unlink()
    data = output / "checkpoints" / "ckpt-8.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    files = [[str(records / split / "a.tfrecord.gz")] for split in ("train", "eval")]
    train_network(MODEL, TRAINING, TASK, *files, output)
    printed = capsys.readouterr().out
    assert "ckpt-8 can't be read" in printed
    assert "resuming after step 4" in printed
    rows = read_history(output / "history.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows[-1]["loss"] == pytest.approx(finished[1].loss, rel=1e-4)


def test_a_checkpoint_of_another_network_is_refused_and_kept(finished, records, tmp_path):
    output = interrupted(finished, tmp_path / "run")
    (output / "training.json").unlink()
    other = attrs.evolve(MODEL, width=0.25)
    with pytest.raises(ModelError, match=r"ckpt-4: expected a checkpoint of this network"):
        train(records, output, model=other)
    assert (output / "checkpoints" / "ckpt-4.index").exists()


def test_a_refused_checkpoint_is_told_without_a_list_of_its_values(tmp_path, caplog):
    # Collecting what other tests have left would take long.
    gc.freeze()
    saved, wanted = tf.Module(), tf.Module()
    saved.values = [tf.Variable(0.0) for _ in range(3)]
    wanted.weights = [tf.Variable(0.0) for _ in range(3)]
    tf.train.CheckpointManager(tf.train.Checkpoint(net=saved), str(tmp_path), 1).save()
    with contextlib.suppress(ModelError):
        restore(tf.train.Checkpoint(net=wanted), tmp_path, print)
        pytest.fail("was restored")
    # TensorFlow lists them when the objects are deleted.
    del saved, wanted
    gc.collect()
    gc.unfreeze()
    assert "could not be found" not in caplog.text


def test_another_run_in_the_same_folder_is_refused(finished, records):
    output, _ = finished
    changed = TrainingConfig(**{**attrs.asdict(TRAINING), "learning_rate": 1e-4})
    with pytest.raises(SettingsError, match=r"learning_rate = 0.0001, found 0.003"):
        train(records, output, training=changed)


def test_other_records_or_start_weights_are_refused_and_moved_ones_are_not(
    finished, records, tmp_path
):
    output, result = finished
    moved = shutil.copytree(records, tmp_path / "moved", copy_function=shutil.copyfile)
    assert train(moved, output) == result
    start = build_network(MODEL, seed=1)
    with pytest.raises(SettingsError, match="a run of the same start weights, found one of others"):
        train(records, output, initial=start)
    for split, what in (("eval", "evaluation"), ("train", "training")):
        # The same bytes, but for the checksum at the end.
        file = moved / split / "a.tfrecord.gz"
        file.write_bytes(file.read_bytes()[:-8] + b"checksum")
        with pytest.raises(SettingsError, match=f"{what} records, found one of others. Choose"):
            train(moved, output)
    # Of an earlier version's run, records and start weights are not known.
    before = shutil.copytree(output, tmp_path / "before")
    settings = json.loads((before / "training.json").read_text())
    del settings["inputs"]
    (before / "training.json").write_text(json.dumps(settings))
    assert train(moved, before, initial=start) == result
    with pytest.raises(SettingsError, match="a run of the same training records"):
        train(records, before, initial=start)


def test_start_weights_are_known_by_their_content(tmp_path):
    network = build_network(MODEL, seed=1)
    save_network(tmp_path, network, MODEL)
    given = (network, tmp_path, "imagenet", None, tmp_path / "missing")
    starts = [inputs_of(TRAINING, [], [], each).get("start weights") for each in given]
    assert starts[0] == starts[1]
    assert starts[2:] == ["imagenet", "scratch", None]


def test_a_second_training_in_the_same_folder_is_refused_while_one_runs(records, tmp_path):
    told = pytest.raises(SettingsError, match="expected one training, found another running")
    with locked(tmp_path), told:
        train(records, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    records, tmp_path
):
    diverging = TrainingConfig(
        **{
            **attrs.asdict(TRAINING),
            "learning_rate": 1e38,
            "checkpoint_every": 1,
            "warmup_steps": 7,
        }
    )
    message = (
        r"step (\d): expected a finite loss .* The last good checkpoint is .*/ckpt-(\d)\. Try a"
    )
    with pytest.raises(ModelError, match=message) as caught:
        train(records, tmp_path / "run", training=diverging)
    step, kept = map(int, re.search(message, str(caught.value)).groups())
    assert kept < step
    assert (tmp_path / "run" / "checkpoints" / f"ckpt-{kept}.index").exists()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [10.0, 1e4])
def test_a_rate_that_diverges_is_told_by_its_first_losses(records, tmp_path, rate):
    diverging = attrs.evolve(TRAINING, learning_rate=rate, steps=60, evaluate_every=0)
    message = (
        rf"step \d+: expected a loss that falls, found a mean of .* learning_rate \({rate:g}\)"
    )
    with pytest.raises(ModelError, match=message):
        train(records, tmp_path / "run", training=diverging)
    assert read_history(tmp_path / "run" / "history.csv")[-1]["step"] < 50


def test_settings_that_do_not_fit_the_task_are_refused(records, tmp_path):
    with pytest.raises(SettingsError, match="classes: expected 3"):
        train(records, tmp_path, model=ModelConfig(classes=2))
    with pytest.raises(SettingsError, match="intensity_window"):
        train(records, tmp_path, model=ModelConfig(intensity_window=(0.0, 1.0)))
    weights = TrainingConfig(**{**attrs.asdict(TRAINING), "class_weights": (1.0, 2.0)})
    with pytest.raises(SettingsError, match="class_weights"):
        train(records, tmp_path, training=weights)
    with pytest.raises(InputError, match="at least one file"):
        train_network(MODEL, TRAINING, TASK, [], [], tmp_path)
    many = TrainingConfig(**{**attrs.asdict(TRAINING), "replicas": 64, "batch_size": 64})
    with pytest.raises(SettingsError, match="replicas"):
        train(records, tmp_path, training=many)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_xla_with_several_replicas_of_a_cpu_is_refused_in_one_line(forks, toy_records, tmp_path):
    code = f"""
from ahnet_tf.train import main
raise SystemExit(main(["--input", {str(toy_records)!r}, "--output", {str(tmp_path / "run")!r},
    "--stage", "2d", "--replicas", "2", "--set", "jit_compile=true", "--steps", "4", "--batch-size",
    "2", "--set", "architecture=unet2d", "--set", "unet_levels=2", "--set", "width=0.125", "--set",
    "warmup_steps=1"]))
"""
    assert forks.wait(forks.start(code, tmp_path / "log")) == 1
    (line,) = [x for x in (tmp_path / "log").read_text().splitlines() if x.startswith("error")]
    assert line.startswith("error: jit_compile: expected false with several replicas on CPUs")


@pytest.mark.slow
def test_the_largest_seed_trains(records, tmp_path):
    training = attrs.evolve(TRAINING, seed=2**32 - 1, steps=2, warmup_steps=1)
    assert train(records, tmp_path / "run", training=training).steps == 2


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


@pytest.mark.slow
def test_a_network_with_another_prior_is_refused_and_its_encoder_is_not():
    small = {"width": 0.125, "blocks": (1, 1, 1, 1), "dense_layers": 1, "growth": 4}
    plain = ModelConfig(activation="sigmoid", classes=2, **small)
    prior = attrs.evolve(plain, foreground_prior=0.01)
    source = build_network(prior)
    told = r"foreground_prior: expected 0\.01, as in the network to start from, found 0\.0"
    with pytest.raises(SettingsError, match=told):
        start_from(source, build_network(plain))
    start_from(source, build_network(prior))
    start_from(source, build_network(attrs.evolve(plain, classes=3)))
    start_from(build_network(attrs.evolve(plain, architecture="mcgcn")), build_network(prior))


REPLICAS = """
import keras
import numpy as np
from ahnet_tf.training.optimizer import WeightAverage
from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.training.distribution import set_up_devices, training_strategy
from ahnet_tf.networks import build_network
from ahnet_tf.training.optimizer import make_optimizer
from ahnet_tf.training.train_step import make_train_step
set_up_devices(2)
import tensorflow as tf
if WIDE:
    # Norms and losses compute in float32 whatever comes in: here that name means float64.
    tf.float32 = tf.float64
    keras.backend.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")
model_config = ModelConfig(architecture="unet2d", width=0.125, unet_levels=3, norm="sync_batch")
rng = np.random.default_rng(0)
label = rng.integers(0, 3, (4, 2, 32, 32)).astype(np.uint8)
image = (label[..., None] * 100 + rng.normal(0, 30, label.shape + (1,)))
weight = np.ones(label.shape)
weight[0], weight[1, 1] = 0, 0
real = tf.float32.as_numpy_dtype
whole = dict(image=image.astype(real), label=label, weight=weight.astype(real))
for replicas in (1, 2):
    config = TrainingConfig(
        steps=10,
        warmup_steps=0,
        batch_size=4,
        replicas=replicas,
        class_weights=(1.0, 2.0, 3.0),
        weight_decay=0.01,
    )
    strategy = training_strategy(replicas)
    assert strategy.num_replicas_in_sync == replicas
    with strategy.scope():
        model = build_network(model_config, seed=0)
    optimizer = make_optimizer(strategy, model, config)
    average = WeightAverage(strategy, model, 0.5)
    step = make_train_step(strategy, model, optimizer, model_config, config, average)
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
    for _ in range(5):
        print(*(float(value) for value in step(batch)))
    with average.in_place():
        print(*(float(tf.norm(weight)) for weight in model.weights[:2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_two_replicas_learn_what_one_does_from_the_same_batch(forks, tmp_path, wide):
    """In float64 every step is the same; in float32 the first one.

    What float32 rounds off differs with the size of a replica's batch, and training multiplies it: Adam
    divides by the size of gradients, also of those that are rounding errors.
    """
    log = tmp_path / "log"
    code = f"WIDE = {wide}\n{REPLICAS}"
    assert forks.wait(forks.start(code, log)) == 0, log.read_text()[-2000:]
    lines = [line.split() for line in log.read_text().splitlines()[-12:]]
    one, two = np.array(lines, float).reshape(2, 6, 2)
    if wide:
        np.testing.assert_allclose(two, one, rtol=1e-9)
    else:
        assert (np.abs(two[0] - one[0]) <= np.abs(one[0]) * [1e-5, 2e-4]).all()
        np.testing.assert_allclose(two[1:5, 0], one[1:5, 0], rtol=5e-3)
    assert one[4, 0] < 0.9 * one[0, 0]


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
    task = attrs.evolve(TASK, patch_shape_zyx=shape)
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
