"""What `import ahnet_tf` offers: networks for Keras, data for `fit`, segmentation of one volume."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import nibabel as nib
import numpy as np
import pytest

import ahnet_tf
from ahnet_tf.inference.sliding_window import most_probable
from ahnet_tf.training.losses import sigmoid_focal, softmax_focal
from preprocessing.errors import InputError, ModelError, ServingError, SettingsError
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

TINY = {"width": 1 / 16, "blocks": (1, 1, 1, 1), "growth": 4, "dense_layers": 1, "pvp_levels": 2}
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 3, 0, -10], [0, 0, 5, 7], [0, 0, 0, 1]])


@pytest.fixture
def hounsfield():
    """An image [x, y, z] with liver and tumour for `threshold_model`."""
    return np.random.default_rng(0).integers(-100, 250, (12, 10, 6)).astype(np.int16)


def test_import_is_fast_and_brings_no_tensorflow():
    code = "import ahnet_tf, sys, time; dir(ahnet_tf); "
    code += "print('tensorflow' in sys.modules, time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    found, cpu_seconds = done.stdout.split()
    assert found == "False"
    assert float(cpu_seconds) < 5


@pytest.mark.slow
def test_nobody_is_warned_of_the_end_of_a_dependency():
    code = "import ahnet_tf; ahnet_tf.build"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("name", ahnet_tf.__all__)
def test_everything_offered_exists(name):
    assert name in dir(ahnet_tf)
    assert getattr(ahnet_tf, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segment_all'"):
        ahnet_tf.segment_all  # noqa: B018


@pytest.mark.slow
def test_path_image_and_array_give_the_same_labels(threshold_model, tissues, hounsfield, tmp_path):
    write_image(tmp_path / "ct.nii.gz", Volume(hounsfield, AFFINE))
    image = nib.load(tmp_path / "ct.nii.gz")
    segmenter = ahnet_tf.load(threshold_model)
    assert segmenter.task.name == "threshold"
    results = [
        segmenter.segment(tmp_path / "ct.nii.gz"),
        segmenter.segment(str(tmp_path / "ct.nii.gz"), overlap=0.5, batch_size=3),
        segmenter.segment(image),
        segmenter.segment(hounsfield, affine=AFFINE),
        segmenter.segment(Volume(hounsfield, AFFINE)),
        # The threshold does not care where the axes point.
        segmenter.segment(hounsfield, spacing_mm=(2.0, 3.0, 5.0)),
    ]
    for number, result in enumerate(results):
        np.testing.assert_array_equal(result.labels, tissues(hounsfield))
        assert result.probabilities == result.lesions == ()
        # A voxel has 2 x 3 x 5 mm3.
        expected = [round(float((result.labels == value).sum() * 0.03), 3) for value in (1, 2)]
        assert list(result.volumes_ml.values()) == expected
        assert list(result.volumes_ml) == ["liver", "tumour"]
        path = tmp_path / f"{number}.nii.gz"
        result.save(path)
        saved = nib.load(path)
        np.testing.assert_array_equal(np.asarray(saved.dataobj), result.labels)
        np.testing.assert_allclose(saved.affine, result.image.affine)
        result.overlay(tmp_path / f"{number}.png", title="case")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_the_header_of_an_image_in_memory_is_not_passed_on(threshold_model, hounsfield, tmp_path):
    image = nib.Nifti1Image(hounsfield, AFFINE)
    image.header["descrip"] = b"Doehring^Xaveria"
    image.set_sform(AFFINE, code=3)
    ahnet_tf.load(threshold_model).segment(image).save(tmp_path / "a.nii")
    saved = nib.load(tmp_path / "a.nii")
    assert int(saved.header["sform_code"]) == 3
    assert b"Doehring" not in (tmp_path / "a.nii").read_bytes()


def test_an_image_in_memory_may_have_an_axis_of_one(threshold_model, hounsfield, tmp_path):
    image = nib.Nifti1Image(hounsfield[..., None], AFFINE)
    result = ahnet_tf.load(threshold_model).segment(image)
    result.save(tmp_path / "a.nii.gz")
    saved = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), result.labels)
    np.testing.assert_allclose(saved.affine, AFFINE)
    assert image.shape == (*hounsfield.shape, 1)


def test_misfits_are_refused_and_doubts_are_warnings(threshold_model, hounsfield, tmp_path):
    segmenter = ahnet_tf.load(threshold_model)
    mask = (hounsfield > 0).astype(np.uint8)
    write_image(tmp_path / "ct.nii.gz", Volume(mask, AFFINE))
    with pytest.raises(InputError, match=r"ct.nii.gz: expected an image for threshold, found 2 v"):
        segmenter.segment(tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match=r"expected an image for threshold, found 2 v"):
        segmenter.segment(mask, affine=AFFINE)
    with pytest.warns(UserWarning, match="2 values from 0 to 1"):
        result = segmenter.segment(mask, affine=AFFINE, allow=["unfit_image"])
    assert not result.labels.any()
    with pytest.warns(UserWarning, match="expected air near -1000"):
        segmenter.segment(hounsfield, affine=AFFINE)


def test_units_of_images_in_memory_count(threshold_model, hounsfield):
    image = nib.Nifti1Image(hounsfield, np.diag([1000.0, 1000, 1000, 1]) @ AFFINE)
    image.header.set_xyzt_units("micron")
    result = ahnet_tf.load(threshold_model).segment(image)
    np.testing.assert_allclose(result.image.affine, AFFINE)


def test_probabilities_and_post_processing(threshold_model, hounsfield):
    result = ahnet_tf.load(threshold_model).segment(
        hounsfield, affine=AFFINE, probabilities=True, largest_component=True
    )
    assert [each.shape for each in result.probabilities] == [hounsfield.shape] * 3
    most = most_probable(np.stack(result.probabilities, -1))
    assert (result.labels <= most).all()
    assert (result.labels < most).any()


def test_lesions_of_a_heat_map(heat_map_model):
    image = np.zeros((32, 32, 8), np.uint16)
    image[10:15, 20:24, 3:5] = 900
    (lesion,) = ahnet_tf.load(heat_map_model).segment(image, spacing_mm=(1, 1, 1)).lesions
    assert (lesion.x, lesion.y, lesion.z) == (10, 20, 3)
    assert (lesion.width, lesion.height, lesion.depth) == (5, 4, 2)
    assert lesion.score == pytest.approx(0.9, abs=1e-6)


def test_a_dicom_series_gives_a_seg(threshold_model, dicom, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    voxels = np.random.default_rng(1).integers(-100, 250, (4, 16, 16)).astype(np.int16)
    folder = dicom.ct_series(tmp_path / "series", voxels)
    result = ahnet_tf.load(threshold_model).segment(folder)
    result.save(tmp_path / "seg.dcm")
    result.save(tmp_path / "seg.nii.gz")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.Modality == "SEG"
    assert len(seg.DeviceSerialNumber) == 15
    assert b"Doehring" not in (tmp_path / "seg.nii.gz").read_bytes()


def test_several_models_are_averaged(threshold_model, hounsfield):
    alone = ahnet_tf.load(threshold_model).segment(hounsfield, affine=AFFINE, probabilities=True)
    both = ahnet_tf.load([threshold_model, str(threshold_model)], flips="xy")
    found = both.segment(hounsfield, affine=AFFINE, probabilities=True)
    np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "own"),
    [
        ("ahnet", {}),
        ("ahnet", {"upsampling": "transpose", "norm": "group"}),
        ("mcgcn", {"norm": "group"}),
        ("unet2d", {"norm": "group"}),
        ("unet3d", {}),
    ],
)
def test_a_keras_model_is_saved_and_loaded_by_keras(architecture, own, tmp_path):
    network = ahnet_tf.build(architecture, **{**TINY, **own}, unet_levels=2, seed=5)
    assert type(network).__module__.startswith("keras")
    image = np.random.default_rng(0).normal(0, 100, (1, 3, 40, 33, 1)).astype(np.float32)
    expected = network(image).numpy()
    assert expected.shape == (1, 3, 40, 33, 3)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(image).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_task_sets_classes_window_and_activation():
    network = ahnet_tf.build("unet2d", task="dbt_lesion", unet_levels=2, width=1 / 16)
    config = network.network_config
    assert (config.classes, config.activation) == (2, "sigmoid")
    assert config.intensity_window == (0.0, 16383.0)


@pytest.mark.slow
def test_fit_lowers_the_loss_and_the_network_segments(toy_records, tmp_path):
    task = ahnet_tf.load_task(str(toy_records / "task.json"))
    network = ahnet_tf.build("unet2d", task=task, unet_levels=2, width=1 / 8)
    loss = ahnet_tf.loss(task, class_weights=[0.5] + [1.0] * (len(task.class_names) - 1))
    network.compile(keras.optimizers.Adam(3e-3), loss=loss, weighted_metrics=[])
    patches = ahnet_tf.dataset(toy_records, batch_size=2, augment=True, seed=1)
    before = network.evaluate(ahnet_tf.dataset(toy_records, "eval"), verbose=0)
    network.fit(patches, steps_per_epoch=20, epochs=2, verbose=0)
    assert network.evaluate(ahnet_tf.dataset(toy_records, "eval"), verbose=0) < 0.5 * before

    # The compiled loss is stored too.
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert loaded.loss.get_config() == loss.get_config()

    ahnet_tf.save(network, tmp_path / "network", task)
    image = next(iter(ahnet_tf.dataset(toy_records, "eval")))[0].numpy()[0, ..., 0].T
    found = ahnet_tf.load(network, task=task).segment(image, spacing_mm=(1, 1, 1))
    again = ahnet_tf.load(tmp_path / "network").segment(image, spacing_mm=(1, 1, 1))
    np.testing.assert_array_equal(found.labels, again.labels)


def test_loss_is_that_of_the_training():
    logits = np.random.default_rng(0).normal(0, 2, (2, 3, 4, 5, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, logits.shape[:-1]).astype(np.uint8)
    weight = np.random.default_rng(2).uniform(0, 1, labels.shape).astype(np.float32)
    weights = (0.2, 1.0, 3.0)
    each = softmax_focal(labels, logits, gamma=1.5, class_weights=weights).numpy()
    loss = ahnet_tf.loss("ct_liver", gamma=1.5, class_weights=weights)
    found = float(loss(labels, logits, sample_weight=weight))
    assert found == pytest.approx((each * weight).mean(), rel=1e-5)

    heat_map = np.random.default_rng(3).uniform(0, 1, labels.shape).astype(np.float32)
    logits = logits[..., :2]
    each = sigmoid_focal(heat_map, logits[..., 1:], class_weights=(1.0, 5.0)).numpy()
    loss = ahnet_tf.loss("dbt_lesion", class_weights=(1.0, 5.0))
    assert float(loss(heat_map, logits)) == pytest.approx(each.mean(), rel=1e-5)
    # Cross-entropy is the focal loss of gamma 0.
    assert float(ahnet_tf.loss("dbt_lesion", "cross_entropy")(heat_map, logits)) == pytest.approx(
        float(ahnet_tf.loss("dbt_lesion", gamma=0.0)(heat_map, logits)), rel=1e-5
    )


@pytest.mark.slow
def test_transfer_copies_the_encoder():
    source = ahnet_tf.build("mcgcn", **TINY, seed=1)
    target = ahnet_tf.build("ahnet", **TINY, seed=2)
    report = ahnet_tf.transfer(source, target)
    assert {name.split("/")[0] for name, _ in report.copied} >= {"stem", "res1_block1"}
    with pytest.raises(ModelError, match="same width"):
        ahnet_tf.transfer(source, ahnet_tf.build("mcgcn", **{**TINY, "width": 1 / 8}))


def test_scores_of_label_maps(tmp_path):
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    for folder, voxels in (("found", labels), ("true", np.roll(labels, 1, axis=0))):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "segmentation-0.nii.gz", Volume(voxels, np.eye(4)))
    scores = ahnet_tf.score_cases([tmp_path / "found"], [tmp_path / "true"])
    (row,) = scores.rows.values()
    # 48 of 64 voxels in common.
    assert row["liver_dice"] == pytest.approx(0.75)
    assert scores.problems == []
    assert ahnet_tf.score_cases(str(tmp_path / "found"), tmp_path / "true").rows == scores.rows


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda s: ahnet_tf.load("nowhere"), ModelError, "nowhere: expected a SavedModel"),
        (lambda s: ahnet_tf.load("localhost:9"), ServingError, "Check host, port"),
        (lambda s: ahnet_tf.load("m", task="ct_liver"), SettingsError, "task: expected no task"),
        (lambda s: ahnet_tf.load(_other_model()), SettingsError, "the task of a Keras model"),
        (lambda s: ahnet_tf.load(_other_model(), task="ct_liver"), ModelError, "ahnet_tf.build"),
        (lambda s: ahnet_tf.load(_network(classes=2), task="ct_liver"), SettingsError, "3 \\("),
        (lambda s: ahnet_tf.load(_network(channels=2), task="ct_liver"), ModelError, "1 channel"),
        (lambda s: s.segment(np.ones((4, 4, 4))), InputError, "spacing_mm or affine.*neither"),
        (
            lambda s: s.segment(np.ones((4, 4, 4)), spacing_mm=(1, 1, 1), affine=AFFINE),
            InputError,
            "spacing_mm or affine.*both",
        ),
        (lambda s: s.segment("no.nii", affine=AFFINE), InputError, "the image has its own"),
        (lambda s: s.segment(np.ones((4, 4)), affine=AFFINE), InputError, "numbers \\[x, y, z\\]"),
        (lambda s: s.segment(np.ones((4, 4, 4)), affine=AFFINE), InputError, "contrast"),
        (lambda s: s.segment(np.eye(4)[:, :, None], affine=np.eye(3)), InputError, "4x4 affine"),
        (lambda s: s.segment("no.nii"), InputError, "no.nii.*no such file"),
        (lambda s: s.segment(np.eye(4), overlp=0.5), SettingsError, "Did you mean 'overlap'"),
        (lambda s: s.segment(np.eye(4), overlap=1.0), SettingsError, "overlap"),
        (lambda s: s.segment(np.eye(4), detection={}), SettingsError, "a DetectionSettings"),
        (lambda s: ahnet_tf.build("anet"), SettingsError, "Did you mean 'ahnet'"),
        (lambda s: ahnet_tf.build("ahnet", clases=3), SettingsError, "Did you mean 'classes'"),
        (lambda s: ahnet_tf.build("ahnet", growth=20.5), SettingsError, "growth"),
        (
            lambda s: ahnet_tf.build("ahnet", task="ct_liver", activation="sigmoid"),
            SettingsError,
            "activation: expected softmax, which ahnet_tf.loss of this task trains",
        ),
        (lambda s: ahnet_tf.dataset("nowhere"), InputError, "records with task.json"),
        (lambda s: ahnet_tf.loss("ct_livr"), SettingsError, "Did you mean 'ct_liver'"),
        (lambda s: ahnet_tf.loss("ct_liver", "focl"), SettingsError, "Did you mean 'focal'"),
        (lambda s: ahnet_tf.loss("ct_liver", "dice_focal"), SettingsError, "train has it"),
        (lambda s: ahnet_tf.loss("ct_liver", "heat_map_l2"), SettingsError, "softmax"),
        (lambda s: ahnet_tf.loss("ct_liver", gamma=-1), SettingsError, "gamma: expected"),
        (lambda s: ahnet_tf.loss("ct_liver", class_weights=(1, 2)), SettingsError, "one for each"),
    ],
)
def test_errors_are_typed_and_say_what_to_do(threshold_model, call, kind, message):
    with pytest.raises(kind, match=message):
        call(ahnet_tf.load(threshold_model))


def test_a_seg_needs_a_dicom_image(threshold_model, hounsfield, tmp_path):
    result = ahnet_tf.load(threshold_model).segment(hounsfield, affine=AFFINE)
    with pytest.raises(InputError, match="to which a DICOM SEG refers"):
        result.save(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"\*.nii.gz or \*.nii"):
        result.save(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_several_cases_are_not_one_volume(threshold_model, hounsfield, tmp_path):
    for name in ("volume-1.nii.gz", "volume-2.nii.gz"):
        write_image(tmp_path / name, Volume(hounsfield, AFFINE))
    with pytest.raises(InputError, match="one volume, found 2 cases"):
        ahnet_tf.load(threshold_model).segment(tmp_path)


def test_conversion_takes_one_folder_and_the_name_of_a_task(tmp_path):
    task = ahnet_tf.load_task("ct_liver")
    (tmp_path / "task.json").write_text(
        json.dumps(task.to_dict() | {"patch_shape_zyx": [4, 16, 16]})
    )
    labels = np.zeros((16, 16, 8), np.uint8)
    labels[4:9, 4:9, 2:6] = 1
    image = labels * np.int16(100) + np.arange(16, dtype=np.int16)[:, None, None]
    write_image(tmp_path / "cases" / "volume-0.nii.gz", Volume(image, AFFINE))
    write_image(tmp_path / "cases" / "segmentation-0.nii.gz", Volume(labels, AFFINE))
    manifest = ahnet_tf.convert_cases(
        tmp_path / "cases", tmp_path / "records", str(tmp_path / "task.json"), progress=False
    )
    assert manifest["converted"] == 1
    with pytest.raises(SettingsError, match="Did you mean 'ct_liver'"):
        ahnet_tf.convert_cases(tmp_path / "cases", tmp_path / "again", "ct_livr")


def test_training_stages_by_function(toy_records, tmp_path):
    with pytest.raises(InputError, match=r"records with task\.json"):
        ahnet_tf.train_stages(tmp_path / "nowhere", tmp_path / "run")


def _network(**settings):
    return ahnet_tf.build("unet2d", unet_levels=2, width=1 / 16, **settings)


def _other_model():
    image = keras.Input((None, None, None, 1))
    return keras.Model(image, image)


@pytest.mark.parametrize("stages", ["3d", (), ("2d", "4d")])
def test_stages_that_are_none_are_refused(toy_records, tmp_path, stages):
    with pytest.raises(SettingsError, match="stages: expected some of 2d, 3d"):
        ahnet_tf.train_stages(toy_records, tmp_path / "run", stages=stages)
    assert list(tmp_path.iterdir()) == []
