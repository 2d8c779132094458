"""The law of normalised tasks: no scaling of a volume's intensities changes its heat map."""

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings, predictor_of
from ahnet_tf.inference.segment import PredictionSettings, segment_volume
from ahnet_tf.networks import build_network
from ahnet_tf.report.overlay import overlay_case
from preprocessing.errors import InputError
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume

TASK = PRESETS["dbt_lesion_small"]
WITH_MAPS = PredictionSettings(probabilities=True)
SCALINGS = {
    "gain": lambda v: v * 3,
    "offset": lambda v: v + 3000,
    "10 bits": lambda v: np.rint(v / 16).astype(np.uint16),
    "12 bits": lambda v: np.rint(v / 4).astype(np.uint16),
    "16 bits": lambda v: v * 4,
    "negative": lambda v: (v.astype(np.int32) - 9000).astype(np.int16),
    "float32": lambda v: v.astype(np.float32) / 16383,
}


@pytest.fixture(scope="module")
def volume(breast_14_bits):
    return breast_14_bits


def predictor_for(task):
    config = ModelConfig(
        architecture="unet3d",
        classes=2,
        activation="sigmoid",
        width=1 / 16,
        intensity_window=task.intensity_window,
    )
    network = build_network(config, seed=5)
    return predictor_of(network, ExportSettings(task, config, (8, 64, 64)), "here")


@pytest.fixture(scope="module")
def predictor():
    return predictor_for(TASK)


def heat_map(voxels, affine, predictor):
    return segment_volume(Volume(voxels, affine), predictor, WITH_MAPS).probabilities[1]


@pytest.fixture(scope="module")
def expected(volume, predictor):
    found = heat_map(volume.voxels, volume.affine, predictor)
    assert np.ptp(found) > 0.1  # the network sees the breast
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_volumes_have_the_same_heat_map(volume, predictor, expected, name):
    found = heat_map(SCALINGS[name](volume.voxels), volume.affine, predictor)
    assert np.abs(found - expected).max() <= 1e-3


@given(
    gain=st.floats(0.1, 4),
    offset=st.integers(-16000, 16000),
    dtype=st.sampled_from(["int16", "int32", "float32", "float64"]),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_gain_and_offset(volume, predictor, expected, gain, offset, dtype):
    # At least a tenth of 14 bits, as much as fits into the dtype.
    voxels = volume.voxels.astype(np.float64)
    scaled = voxels * gain + offset
    if dtype == "int16":
        scaled = np.minimum(scaled, voxels.max() * min(gain, 0.9) + offset)
    if np.dtype(dtype).kind == "i":
        scaled = np.rint(np.minimum(voxels * min(gain, 1), 16383) + offset)
    found = heat_map(scaled.astype(dtype), volume.affine, predictor)
    assert np.abs(found - expected).max() <= 1e-3


def test_without_normalisation_scaling_matters(volume):
    raw = predictor_for(attrs.evolve(TASK, normalization="none"))
    one, other = (heat_map(v, volume.affine, raw) for v in (volume.voxels, volume.voxels // 4))
    assert np.abs(one - other).max() > 0.05


def test_a_uniform_block_is_refused(predictor):
    block = np.full((64, 96, 16), 100, np.uint16)
    block[:40, 10:80, 2:14] = 600
    with pytest.raises(InputError, match="found a uniform block"):
        segment_volume(Volume(block, np.eye(4)), predictor)


@pytest.mark.slow
def test_overlays_are_drawn_on_the_window(volume, tmp_path):
    """The picture of a volume is that of any scaling of it."""
    labels = np.zeros(volume.voxels.shape, np.uint8)
    labels[30:36, 40:50, 6:9] = 1
    pictures: list[np.ndarray] = []
    for number, voxels in enumerate((volume.voxels, volume.voxels * 4, volume.voxels * 0.5)):
        path = tmp_path / f"{number}.png"
        overlay_case(path, Volume(voxels, volume.affine), labels, None, TASK, "case")
        pictures.append(np.asarray(Image.open(path).convert("RGB"), np.int16))
    for picture in pictures[1:]:
        assert np.abs(picture - pictures[0]).max() <= 3
    assert np.ptp(pictures[0]) > 200
