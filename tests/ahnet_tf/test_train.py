"""The training command: rejected input, and both stages in one run."""

import hashlib
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.networks import named_weights
from ahnet_tf.train import main
from ahnet_tf.training.run_folder import locked
from ahnet_tf.weights import keras_resnet50
from ahnet_tf.weights.checkpoint import load_network
from preprocessing.records.schema import Patch, encode_patch
from preprocessing.tasks import Task
from tests.ahnet_tf.weights.keras_h5 import layer_weights, write_keras_h5

TASK = Task("toy", ("background", "lesion"), (0.0, 100.0), patch_shape_zyx=(2, 32, 32))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    (folder / "task.json").write_text(json.dumps(TASK.to_dict()))
    label = np.zeros((2, 32, 32), np.uint8)
    label[:, 8:20, 8:20] = 1
    for split in ("train", "eval"):
        patch = Patch(
            image_zyx=(label * 100).astype(np.int16),
            label_zyx=label,
            case_id=split,
            source="toy",
            index=0,
            origin_zyx=(0, 0, 0),
            valid_zyx=(2, 32, 32),
            volume_shape_zyx=(2, 32, 32),
            spacing_mm=(1.0, 1.0, 5.0),
            intensity_quantiles=(0.0, 0.0, 100.0),
            case_label_voxels=(1760, 288),
        )
        (folder / split).mkdir()
        with tf.io.TFRecordWriter(str(folder / split / "a.tfrecord")) as writer:
            writer.write(encode_patch(patch, TASK))
    return folder


def test_help_comes_without_tensorflow():
    script = (
        "import sys, ahnet_tf.train as train\n"
        "try: train.main(['--help'])\n"
        "except SystemExit: sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "python -m ahnet_tf.train --input records --output run" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "3d.stpes=5"], "Did you mean 'steps'?"),
        (["--steps", "0"], "steps: expected a whole number of at least 1, found 0"),
        (["--batch-size", "-1"], "batch_size: expected a whole number of at least 1"),
        (["--learning-rate", "0"], "learning_rate: expected a finite rate above 0"),
        (
            ["--config", "missing.json"],
            "missing.json: expected a JSON file of settings, found No such file",
        ),
        (["--init", "missing", "--set", "class_weights=[1,2]"], "missing: expected a network"),
        (["--init", "imagnet", "--set", "class_weights=[1,2]"], "Did you mean 'imagenet'?"),
        (
            ["--init", "imagenet", "--set", "class_weights=[1,2]", "--set", "width=0.5"],
            "--init imagenet: expected a network of ResNet-50's width (1)",
        ),
        (
            ["--init", "imagenet", "--set", "class_weights=[1,2]", "--set", "norm=group"],
            "--init imagenet: expected ResNet-50's batch norm, found norm=group",
        ),
        (["--task", "ct_livre"], "Did you mean 'ct_liver'"),
        (["--precision", "float8"], "precision: expected one of float32"),
        (["--set", "2d.replicas=2", "--set", "class_weights=[1,2]"], "the same number in both"),
        ([], "class_weights: expected one for each of 2 (background, lesion)"),
    ],
)
def test_refuses_before_any_work(records, tmp_path, capsys, options, message):
    code = main(["--input", str(records), "--output", str(tmp_path / "run"), *options])
    error = capsys.readouterr().err
    assert code == 1
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


def test_refuses_a_damaged_cluster_before_any_work(records, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"index": 5}}')
    options = ["--input", str(records), "--output", str(tmp_path / "run")]
    assert main([*options, "--set", "class_weights=[1,2]"]) == 1
    assert "TF_CONFIG: expected a task of its cluster" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "eval"])
def test_refuses_an_empty_split(records, tmp_path, capsys, split):
    (tmp_path / "records" / split).mkdir(parents=True)
    (tmp_path / "records" / "task.json").write_text(json.dumps(TASK.to_dict()))
    other = "eval" if split == "train" else "train"
    (tmp_path / "records" / other).symlink_to(records / other)
    options = ["--input", str(tmp_path / "records"), "--output", str(tmp_path / "run")]
    assert main([*options, "--set", "class_weights=[1,2]"]) == 1
    assert f"records/{split}: expected TFRecords" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_trains_on_all_cases_where_nothing_is_evaluated(records, tmp_path, capsys):
    (tmp_path / "task.json").write_text(json.dumps(TASK.to_dict()))
    (tmp_path / "train").symlink_to(records / "train")
    run = tmp_path / "run"
    options = ["--input", str(tmp_path), "--output", str(run), "--stage", "2d", "--steps", "1"]
    settings = (
        "class_weights=[1,2]",
        "2d.architecture=unet2d",
        "width=0.125",
        "unet_levels=2",
        "warmup_steps=0",
    )
    for setting in (*settings, "evaluate_every=0"):
        options += ["--set", setting]
    assert main(options) == 0
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert "Dice" not in header
    assert row.split()[0] == "unet2d"
    assert (run / "mcgcn" / "weights.safetensors").is_file()


def test_a_refused_command_changes_no_settings(records, tmp_path, capsys):
    run = tmp_path / "run"
    given = ["--input", str(records), "--output", str(run), "--stage", "2d", "--steps", "1"]
    small = ("architecture=unet2d", "width=0.125", "unet_levels=2", "norm=group")
    for setting in (*small, "class_weights=[1,2]", "warmup_steps=0", "evaluate_every=0"):
        given += ["--set", setting]
    assert main(given) == 0
    printed = capsys.readouterr().out.splitlines()[-2:]
    settings = (run / "settings.json").read_bytes()

    assert main([*given, "--learning-rate", "0.5"]) == 1
    assert "learning_rate = 0.5, found" in capsys.readouterr().err
    other = shutil.copytree(records, tmp_path / "other")
    (other / "train" / "a.tfrecord").rename(other / "train" / "b.tfrecord")
    assert main([*given, "--input", str(other)]) == 1
    assert "expected a run of the same training records" in capsys.readouterr().err
    assert main([*given, "--init", str(run / "mcgcn")]) == 1
    assert "expected a run of the same start weights" in capsys.readouterr().err
    with locked(run):
        assert main([*given, "--set", "log_every=7"]) == 1
    assert f"{run}: expected one training, found another running" in capsys.readouterr().err
    assert (run / "settings.json").read_bytes() == settings

    assert main([*given, "--set", "log_every=7"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == printed
    assert (run / "settings.json").read_bytes() != settings


def test_refuses_a_folder_without_records(tmp_path, capsys):
    assert main(["--input", str(tmp_path), "--output", str(tmp_path / "run")]) == 1
    assert "task.json" in capsys.readouterr().err


@pytest.mark.slow
def test_both_stages_in_one_command_from_imagenet(records, tmp_path, monkeypatch, capsys):
    """From a file in Keras' layout in Keras' own place, through MC-GCN's training into AH-Net."""
    resnet = keras.applications.ResNet50(include_top=False, weights=None)
    random = np.random.default_rng(4)
    for weight in resnet.weights:
        scale = 0.02 if "kernel" in weight.name else 0.3
        weight.assign(scale * random.uniform(0.5, 1.5, weight.shape))
    path = tmp_path / ".keras" / "models" / keras_resnet50.NAME
    path.parent.mkdir(parents=True)
    write_keras_h5(path, layer_weights(resnet))
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(keras_resnet50, "MD5", digest)
    monkeypatch.setenv("HOME", str(tmp_path))
    # So small a rate that the kernels stay.
    settings = ["steps=1", "warmup_steps=0", "learning_rate=1e-9", "evaluate_every=0"]
    settings += ["class_weights=[1,2]", "3d.dense_layers=1", "3d.growth=4", "3d.pvp_levels=1"]
    run = tmp_path / "run"
    options = ["--input", str(records), "--output", str(run), "--init", "imagenet"]
    assert main([*options, *(word for each in settings for word in ("--set", each))]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-3:]] == ["network", "mcgcn", "ahnet"]
    report = (run / "ahnet" / "transfer.txt").read_text()
    assert report.startswith("copied: ")
    assert "stem/kernel" in report
    assert json.loads((run / "settings.json").read_text())["3d"]["training"]["steps"] == 1
    for folder in ("mcgcn", "ahnet"):
        assert json.loads((run / folder / "result.json").read_text())["steps"] == 1
    # Complete stages are not repeated, nor is their start read; their dumped settings are the same run.
    path.unlink()
    assert main([*options, "--config", str(run / "settings.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == printed[-3:]

    weights = named_weights(load_network(run / "ahnet")[0])
    given = layer_weights(resnet)
    # Colours become slices: [7, 7, colour, 64] to [slice, 7, 7, 1, 64].
    stem = given["conv1_conv"]["kernel"].transpose(2, 0, 1, 3)[:, :, :, np.newaxis]
    np.testing.assert_allclose(weights["stem/kernel"], stem, atol=1e-7)
    for ours, layer in {
        "res1_block1/shortcut": "conv2_block1_0",
        "res2_block4/conv2": "conv3_block4_2",
        "res3_block6/conv3": "conv4_block6_3",
        "res4_block3/conv1": "conv5_block3_1",
    }.items():
        kernel = given[f"{layer}_conv"]["kernel"]
        np.testing.assert_allclose(weights[f"{ours}/kernel"], kernel, atol=1e-7)
        gamma = given[f"{layer}_bn"]["gamma"]
        np.testing.assert_allclose(weights[f"{ours}/norm/gamma"], gamma, atol=1e-7)
