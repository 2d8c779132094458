"""Whole volumes through a server: what the same model gives here."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time

import numpy as np
import pytest
from tensorflow_serving.apis import model_pb2

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings, Predictor, open_predictor
from ahnet_tf.inference.segment import PredictionSettings, segment_volume
from ahnet_tf.inference.sliding_window import most_probable, predict_slabs
from ahnet_tf.networks import build_network
from ahnet_tf.predict import main as predict
from preprocessing.errors import InputError, SettingsError
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image
from serving.client.errors import NotServedError, UnreachableError
from serving.client.sync import AHNetClient
from serving.embedded.core import start_server
from serving.export.exporter import export_model

SMALL = {
    "width": 1 / 16,
    "blocks": (1, 1, 1, 1),
    "growth": 4,
    "dense_layers": 1,
    "pvp_levels": 2,
}
AHNET = model_pb2.ModelSpec(name="ahnet")
WITH_MAPS = PredictionSettings(probabilities=True)


@pytest.fixture(scope="module")
def ahnet_models(task, tmp_path_factory):
    """A folder with version 1 of a small network whose answer depends on where windows lie."""
    config = ModelConfig(**SMALL, architecture="unet3d")
    settings = ExportSettings(task, config, (4, 32, 32))
    base = tmp_path_factory.mktemp("unet")
    export_model(build_network(config, seed=5), settings, base / "1")
    return base


@pytest.fixture(scope="module")
def ahnet_server(ahnet_models):
    with start_server(ahnet_models) as running:
        yield running


@pytest.fixture(scope="module")
def volume():
    """int16 HU [x, y, z] of 18 windows, in LPS order to make the way back matter."""
    voxels = np.random.default_rng(4).integers(-1000, 1000, (70, 75, 6)).astype(np.int16)
    return Volume(voxels, np.diag([-0.8, -0.8, 2.5, 1.0]))


@pytest.fixture(scope="module")
def local(ahnet_models, volume):
    return segment_volume(volume, open_predictor(str(ahnet_models)), WITH_MAPS)


def assert_same(found, local):
    for one, other in zip(found.probabilities, local.probabilities, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    certain = np.sort(np.stack(local.probabilities), axis=0)
    certain = certain[-1] - certain[-2] > 1e-4
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(found.labels[certain], local.labels[certain])


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 3])
def test_volume_through_the_server_is_the_local_one(ahnet_server, volume, local, in_flight):
    steps = []
    with AHNetClient(ahnet_server.target, in_flight=in_flight) as client:
        found = client.segment(volume, WITH_MAPS, progress=lambda *step: steps.append(step))
    assert_same(found, local)
    assert np.ptp(local.probabilities[1]) > 1e-2
    assert sum(done for done, _ in steps) == steps[0][1] == 18


@pytest.mark.slow
def test_scaled_tomosynthesis_has_one_heat_map(tmp_path):
    """The client normalises what it sends: gain, offset and dtype do not matter."""
    task = PRESETS["dbt_lesion_small"]
    config = ModelConfig(
        **SMALL,
        architecture="unet3d",
        classes=2,
        activation="sigmoid",
        intensity_window=task.intensity_window,
    )
    settings = ExportSettings(task, config, (8, 64, 64))
    export_model(build_network(config, seed=5), settings, tmp_path / "1")
    image = make_case(3, 0, DBTSettings(shape_xyz=(64, 96, 16))).image
    block = np.zeros((64, 96, 16), np.uint16)
    block[:40, :, 2:14] = 600
    local = segment_volume(image, open_predictor(str(tmp_path)), WITH_MAPS).probabilities[1]
    assert np.ptp(local) > 0.1
    with start_server(tmp_path) as running, AHNetClient(running.target) as client:
        for voxels in (image.voxels * 16, image.voxels.astype(np.float32) / 1023 - 2):
            found = client.segment(Volume(voxels, image.affine), WITH_MAPS).probabilities[1]
            np.testing.assert_allclose(found, local, atol=1e-3)
        with pytest.raises(InputError, match="found a uniform block"):
            client.segment(Volume(block, image.affine))


def test_two_volumes_at_once_in_asyncio_code(ahnet_server, volume, local):
    async def segment_two():
        with AHNetClient(ahnet_server.target) as client:
            calls = [asyncio.to_thread(client.segment, volume, WITH_MAPS) for _ in range(2)]
            return await asyncio.gather(*calls)

    for found in asyncio.run(segment_two()):
        assert_same(found, local)


def test_windows_in_flight_are_bounded_and_in_order(settings):
    """Answers come back in any order; the volume is put together in the right one."""
    volume = np.arange(6 * 16 * 16, dtype=np.int16).reshape(6, 16, 16)
    lock, running, most, count = threading.Lock(), [0], [0], itertools.count()
    together = threading.Barrier(4)

    def predict(batch):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            number = next(count)
        if number < 4:
            # None of the first four is answered before all of them are asked for.
            together.wait(300)
        time.sleep(0.03 if batch.min() % 3 else 0.001)
        with lock:
            running[0] -= 1
        odd = batch[..., 0] % 2
        return np.stack([1 - odd, odd], axis=-1).astype(np.float32)

    slabs = predict_slabs(volume, predict, (2, 5, 16), 2, in_flight=4)
    found = np.concatenate([most_probable(probabilities) for _, probabilities in slabs])
    np.testing.assert_array_equal(found, volume % 2)
    assert most[0] == 4


def test_error_in_flight_ends_the_volume(task):
    def predict(batch):
        raise UnreachableError("here", "an answer", "none")

    settings = ExportSettings(task, ModelConfig(), (4, 16, 16))
    predictor = Predictor(settings, predict, in_flight=3)
    voxels = np.zeros((64, 64, 8), np.int16)
    with pytest.raises(UnreachableError):
        segment_volume(Volume(voxels, np.eye(4)), predictor)


def test_volume_begins_again_when_its_version_is_replaced(tmp_path, export_linear):
    """Version n answers with the logits (0, HU / 100, n): no volume may mix two of them."""
    base = tmp_path / "models"
    export_linear(base, 1)
    voxels = np.zeros((64, 64, 40), np.int16)
    volume = Volume(voxels, np.eye(4))
    seen = []
    with start_server(base, poll_s=0.1, report=lambda line: None) as running:

        def publish(done, total):
            seen.append(done)
            if len(seen) == 3:
                export_linear(base, 2)
                deadline = time.monotonic() + 300
                while running.versions.status(AHNET)[-1].state != 50:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

        client = AHNetClient(running.target)
        found = client.segment(volume, WITH_MAPS, progress=publish)
        tumour = np.exp(2.0) / (2 + np.exp(2.0))
        np.testing.assert_allclose(found.probabilities[2], tumour, atol=1e-5)
        fixed = AHNetClient(f"{running.target}/versions/1")
        with pytest.raises(NotServedError, match="no version 1 loaded"):
            fixed.segment(volume)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": 1, "label": "stable"}, "expected at most one of them"),
        ({"in_flight": 0}, "in_flight: expected at least 1"),
        ({"attempts": 0}, "attempts: expected at least 1"),
        ({"timeout_s": 0}, "timeout_s: expected a time above 0"),
        ({"tls_roots": "roots.pem"}, "expected tls=True with it"),
    ],
)
def test_settings_that_are_not_possible(settings, words):
    with pytest.raises(SettingsError, match=words):
        AHNetClient("localhost:8500", **settings)


def test_resume_does_not_mix_served_versions(export_linear, tmp_path, capsys):
    voxels = np.random.default_rng(0).integers(-200, 200, (5, 4, 3)).astype(np.int16)
    for name in "ab":
        write_image(tmp_path / "cases" / f"{name}.nii.gz", Volume(voxels, np.eye(4)))
    export_linear(tmp_path / "models", 1)
    with start_server(tmp_path / "models", poll_s=0.1, report=lambda line: None) as running:
        command = ["--target", running.target, str(tmp_path / "out"), "--resume"]
        assert predict([str(tmp_path / "cases" / "a.nii.gz"), *command]) == 0
        assert predict([str(tmp_path / "cases"), *command]) == 0
        (model,) = json.loads((tmp_path / "out" / "prediction.json").read_text())["models"]
        assert model["version"] == 1
        export_linear(tmp_path / "models", 2)
        deadline = time.monotonic() + 120
        while running.versions.current_version != 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        capsys.readouterr()
        assert predict([str(tmp_path / "cases"), *command]) == 1
        assert "--resume: expected the model and settings" in capsys.readouterr().err
