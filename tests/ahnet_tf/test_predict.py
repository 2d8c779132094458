"""The predict command: label maps on the grid of the input, bad cases, options, DICOM."""

import gzip
import itertools
import json
import shutil

import attrs
import highdicom as hd
import nibabel as nib
import nibabel.eulerangles
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import MRImageStorage

from ahnet_tf.inference.case_output import prediction_name
from ahnet_tf.inference.predictor import Predictor, open_predictor
from ahnet_tf.inference.segment import PredictionSettings, segment_volume
from ahnet_tf.predict import main
from preprocessing.volumes.geometry import Volume

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]


@pytest.fixture(scope="module")
def predictor(threshold_model):
    return open_predictor(threshold_model)


def blobs(shape, seed=0):
    """HU of air, liver and tumour in random order, without symmetry."""
    random = np.random.default_rng(seed)
    return random.choice(np.array([-900, 60, 200], np.int16), shape, p=[0.6, 0.3, 0.1])


def write(path, voxels, affine=None, sform=1, qform=1):
    affine = np.diag([0.8, 0.8, 5.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, path)


def stored_as(codes, voxels, spacing):
    """The same volume with its voxels stored in another order."""
    straight = nib.Nifti1Image(voxels, np.diag([*spacing, 1.0]))
    canonical, wanted = (nib.orientations.axcodes2ornt(each) for each in ("RAS", codes))
    return straight.as_reoriented(nib.orientations.ornt_transform(canonical, wanted))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_labels_of_every_orientation_are_on_the_input_grid(predictor, tissues, codes):
    stored = stored_as(codes, blobs((9, 7, 5)), (1.0, 1.5, 4.0))
    assert "".join(nib.aff2axcodes(stored.affine)) == codes
    voxels = np.asarray(stored.dataobj)
    labels = segment_volume(Volume(voxels, stored.affine), predictor).labels
    np.testing.assert_array_equal(labels, tissues(voxels))
    assert labels.dtype == np.uint8


def test_labels_of_a_resampled_task_are_on_the_input_grid(predictor):
    """A ball of 200 HU, predicted at twice its spacing, is accurate to half a coarse voxel."""
    x, y, z = np.ogrid[:40, :40, :20]
    radius = np.sqrt((x - 19.5) ** 2 + (y - 19.5) ** 2 + (2 * (z - 9.5)) ** 2)
    # The model's threshold is midway, so partial volume shifts no border.
    voxels = np.where(radius < 14, 200, -100).astype(np.int16)
    task = attrs.evolve(predictor.settings.task, resampling="full", spacing_mm=(2.0, 2.0, 4.0))
    coarse = Predictor(
        attrs.evolve(predictor.settings, task=task, window_shape_zyx=(8, 16, 16)),
        predictor.predict,
    )
    labels = segment_volume(Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), coarse).labels
    assert labels.shape == voxels.shape
    assert (labels[radius < 12] > 0).all()
    assert (labels[radius > 16] == 0).all()


def test_every_orientation_is_resampled_identically(predictor):
    """Labels of a volume stored in another order are those of the RAS+ volume, reordered."""
    task = attrs.evolve(predictor.settings.task, resampling="full", spacing_mm=(1.5, 1.5, 3.0))
    settings = attrs.evolve(predictor.settings, task=task)
    coarse = Predictor(settings, predictor.predict)
    voxels, spacing = blobs((13, 11, 5)).astype(np.int16), (1.0, 1.0, 4.0)
    straight = segment_volume(Volume(voxels, np.diag([*spacing, 1.0])), coarse).labels
    assert set(np.unique(straight)) == {0, 1, 2}
    for codes in ORIENTATIONS:
        stored = stored_as(codes, voxels, spacing)
        labels = segment_volume(Volume(np.asarray(stored.dataobj), stored.affine), coarse).labels
        wanted = np.asarray(stored_as(codes, straight, spacing).dataobj)
        np.testing.assert_array_equal(labels, wanted, codes)


@pytest.mark.parametrize("resampling", ["keep", "full"])
def test_files_of_every_orientation_keep_their_geometry(
    threshold_model, tissues, tmp_path, resampling
):
    """Affine, shape and codes of 48 files are exact; probability maps have the same grid."""
    model, cases, output = tmp_path / "model", tmp_path / "cases", tmp_path / "out"
    shutil.copytree(threshold_model, model)
    settings = json.loads((model / "assets.extra" / "ahnet.json").read_text())
    settings["task"] |= {"resampling": resampling, "spacing_mm": [1.5, 1.5, 3.0]}
    (model / "assets.extra" / "ahnet.json").write_text(json.dumps(settings))
    cases.mkdir()
    for number, codes in enumerate(ORIENTATIONS):
        stored = stored_as(codes, blobs((7, 6, 5)), (0.7, 1.1, 4.0))
        affine = stored.affine.copy()
        affine[:3, 3] += (-17.3, 0.1, 250.7)
        # Every pair of codes that places a grid, oblique ones too.
        sform, qform = [(1, 1), (2, 0), (0, 1), (4, 3)][number % 4]
        turn = nib.eulerangles.euler2mat(z=0.1 * (number % 3))
        affine[:3, :3] = turn @ affine[:3, :3]
        write(cases / f"{codes.lower()}.nii.gz", np.asarray(stored.dataobj), affine, sform, qform)
    options = [str(cases), str(output), "--probabilities"]
    assert main(["--model", str(model), *options]) == 0
    for codes in map(str.lower, ORIENTATIONS):
        source = nib.load(cases / f"{codes}.nii.gz")
        names = ("background", "liver", "tumour")
        maps = [output / "probabilities" / f"{codes}_{name}.nii.gz" for name in names]
        for path in (output / f"{codes}.nii.gz", *maps):
            written = nib.load(path)
            assert written.shape == source.shape
            assert np.array_equal(written.affine, source.affine), path.name
            assert nib.aff2axcodes(written.affine) == nib.aff2axcodes(source.affine)
            for field in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b", "qoffset_z"):
                assert np.array_equal(written.header[field], source.header[field]), (codes, field)
        total = sum(nib.load(path).get_fdata() for path in maps)
        np.testing.assert_allclose(total, 1, atol=1e-5)
        if resampling == "keep":
            labels = np.asarray(nib.load(output / f"{codes}.nii.gz").dataobj)
            assert np.array_equal(labels, tissues(np.asarray(source.dataobj)))


def test_progress_counts_every_window(predictor):
    seen = []
    segment_volume(
        Volume(blobs((9, 17, 5)), np.diag([1, 1, 5, 1])),
        predictor,
        PredictionSettings(overlap=0.5, batch_size=4),
        progress=lambda done, total: seen.append((done, total)),
    )
    # z 5 in windows of 4: 2; y 17 in windows of 8 at steps of 4: 4; x 9: 2.
    assert sum(done for done, _ in seen) == 2 * 4 * 2
    assert {total for _, total in seen} == {16}


def test_names():
    assert prediction_name("volume-12") == "segmentation-12.nii.gz"
    assert prediction_name("lits_volume-12") == "lits_volume-12.nii.gz"
    assert prediction_name("patient.7") == "patient.7.nii.gz"


def test_command_on_a_folder(threshold_model, tissues, tmp_path, capsys):
    """LiTS names, codes and affine of the input, a truncated case, maps, overlays, the record."""
    cases, output = tmp_path / "cases", tmp_path / "out"
    cases.mkdir()
    affine = np.array([[0, -0.7, 0, 100], [0.7, 0, 0, -50], [0, 0, -5, 30], [0, 0, 0, 1.0]])
    voxels = blobs((12, 10, 6), seed=1)
    write(cases / "volume-3.nii.gz", voxels, affine, sform=2, qform=0)
    write(cases / "segmentation-3.nii.gz", tissues(voxels), affine, sform=2, qform=0)
    write(cases / "volume-4.nii", blobs((6, 5, 4), seed=2))
    whole = (cases / "volume-3.nii.gz").read_bytes()
    (cases / "volume-5.nii.gz").write_bytes(whole[: len(whole) // 2])
    arguments = [str(cases), str(output), "--overlay", "--probabilities"]
    assert main(["--model", str(threshold_model.parent), *arguments]) == 1
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert "volume-5.nii.gz" in line
    assert "1 of 3 cases failed" in printed.err
    assert "volume-3" in printed.out
    passed = f"{cases}/segmentation-3.nii.gz: a label map, not an image"
    assert f"passed over: {passed}" in printed.err.splitlines()

    written = nib.load(output / "segmentation-3.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), tissues(voxels))
    assert written.get_data_dtype() == np.uint8
    source = nib.load(cases / "volume-3.nii.gz")
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(written.header[field], source.header[field])
    assert (output / "segmentation-4.nii.gz").is_file()
    assert not (output / "segmentation-5.nii.gz").exists()

    liver = nib.load(output / "probabilities" / "volume-3_liver.nii.gz")
    np.testing.assert_allclose(liver.get_fdata(), tissues(voxels) == 1, atol=1e-6)
    np.testing.assert_allclose(liver.affine, source.affine, atol=1e-6)
    assert (output / "overlays" / "volume-3.png").read_bytes().startswith(b"\x89PNG")

    record = json.loads((output / "prediction.json").read_text())
    states = {case["case_id"]: case["status"] for case in record["cases"]}
    assert states == {"volume-3": "predicted", "volume-4": "predicted", "volume-5": "failed"}
    assert record["settings"]["overlap"] == 0.25
    assert record["passed_over"] == [passed]
    (model,) = record["models"]
    assert model["settings"]["task"]["name"] == "threshold"
    assert len(model["sha256"]) == 64
    assert sorted(path.name for path in output.iterdir()) == [
        "overlays",
        "prediction.json",
        "probabilities",
        "segmentation-3.nii.gz",
        "segmentation-4.nii.gz",
    ]


def test_references_are_never_overwritten(threshold_model, tmp_path, capsys):
    write(tmp_path / "volume-0.nii.gz", blobs((4, 4, 4)))
    write(tmp_path / "segmentation-0.nii.gz", np.ones((4, 4, 4), np.uint8))
    before = (tmp_path / "segmentation-0.nii.gz").read_bytes()
    for given, output, remedy in (
        (tmp_path, tmp_path, "outside the input"),
        (tmp_path, tmp_path / "predictions", "outside the input"),
        (tmp_path / "volume-0.nii.gz", tmp_path, "folder of their own"),
    ):
        options = [str(given), str(output)]
        assert main(["--model", str(threshold_model), *options]) == 1
        assert remedy in capsys.readouterr().err
    assert (tmp_path / "segmentation-0.nii.gz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_run_replaces_the_first(threshold_model, tissues, tmp_path):
    voxels = blobs((6, 5, 4))
    options = [str(tmp_path / "in.nii.gz"), str(tmp_path / "out")]
    for image in (voxels[::-1], voxels):
        write(tmp_path / "in.nii.gz", image)
        assert main(["--model", str(threshold_model), *options]) == 0
    written = np.asarray(nib.load(tmp_path / "out" / "in.nii.gz").dataobj)
    np.testing.assert_array_equal(written, tissues(voxels))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: write(path, np.zeros((4, 4, 4), np.int16)), "all voxels"),
        (lambda path: write(path, np.ones((4, 4, 4, 2), np.int16)), "3D"),
        (lambda path: write(path, np.full((4, 4, 4), np.nan, np.float32)), "NaN"),
        (lambda path: path.write_bytes(gzip.compress(b"no header")), "header"),
        (lambda path: path.mkdir(), "none in this folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_bad_input_is_one_line(threshold_model, tmp_path, capsys, damage, message):
    path = tmp_path / "scan.nii.gz"
    damage(path)
    options = [str(path), str(tmp_path / "out")]
    assert main(["--model", str(threshold_model), *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error:")]
    assert message in line
    assert "scan.nii.gz" in line
    assert not any("Traceback" in line for line in lines)


def resampling_model(threshold_model, folder, spacing_mm):
    """Copies the model of thresholds as one of a task that resamples; returns its folder."""
    shutil.copytree(threshold_model, folder)
    settings = json.loads((folder / "assets.extra" / "ahnet.json").read_text())
    settings["task"] |= {"resampling": "full", "spacing_mm": spacing_mm}
    (folder / "assets.extra" / "ahnet.json").write_text(json.dumps(settings))
    return folder


def record_of(output):
    record = json.loads((output / "prediction.json").read_text())
    return {case["case_id"]: case for case in record["cases"]}


def test_units_of_headers_count(threshold_model, tmp_path, capsys):
    """A volume in microns and one in metres are predicted like that in mm; a wrong unit is not."""
    model = resampling_model(threshold_model, tmp_path / "model", [1.6, 1.6, 5.0])
    cases, output = tmp_path / "cases", tmp_path / "out"
    cases.mkdir()
    spacing = np.array([0.8, 0.8, 2.5, 1])
    voxels = blobs((12, 10, 6))
    voxels[:6] = 200
    units = {"a": ("micron", 1000), "b": ("meter", 0.001), "c": ("mm", 1), "d": ("meter", 1)}
    for name, (unit, factor) in units.items():
        image = nib.Nifti1Image(voxels, np.diag([factor, factor, factor, 1] * spacing))
        image.header.set_xyzt_units(unit)
        nib.save(image, cases / f"{name}.nii")
    assert main(["--model", str(model), str(cases), str(output)]) == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error:")]
    assert "d.nii: expected an image for threshold, found spacing 800 x 800 x 2500 mm" in line
    assert "xyzt_units" in line
    entries = record_of(output)
    assert [case["status"] for case in entries.values()] == ["predicted"] * 3 + ["failed"]
    assert entries["a"]["volumes_ml"] == entries["b"]["volumes_ml"] == entries["c"]["volumes_ml"]
    a, b, c = (np.asarray(nib.load(output / f"{name}.nii.gz").dataobj) for name in "abc")
    assert (c[:4] == 2).all()
    assert np.array_equal(a, c)
    assert np.array_equal(b, c)
    wrong = [str(cases / "d.nii"), str(tmp_path / "allowed"), "--allow", "unit"]
    assert main(["--model", str(model), *wrong]) == 0
    assert np.array_equal(np.asarray(nib.load(tmp_path / "allowed" / "d.nii.gz").dataobj), c)


def test_masks_are_refused_unless_allowed(threshold_model, tmp_path, capsys):
    cases, output = tmp_path / "cases", tmp_path / "out"
    cases.mkdir()
    write(cases / "a.nii", (blobs((12, 10, 6)) > 0).astype(np.uint8))
    write(cases / "b.nii", blobs((12, 10, 6)))
    command = ["--model", str(threshold_model), str(cases), str(output)]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "error: a: " in told
    assert "a.nii: expected an image for threshold, found 2 values from 0 to 1" in told
    assert "warning: b: only 3 values" in told
    entries = record_of(output)
    assert entries["a"]["status"] == "failed"
    assert "--allow unfit_image" in entries["a"]["problem"]
    assert not (output / "a.nii.gz").exists()
    assert entries["b"]["status"] == "predicted"
    (warning,) = entries["b"]["warnings"]
    assert warning == {"code": "few_values", "text": "only 3 values from -900 to 200"}
    assert main([*command, "--allow", "unfit_image"]) == 0
    assert (output / "a.nii.gz").exists()
    assert "few_values" in [each["code"] for each in record_of(output)["a"]["warnings"]]


def test_images_of_another_modality_are_refused(threshold_model, tmp_path, dicom, capsys):
    stored = (blobs((9, 7, 5)).transpose(2, 1, 0) + 1024).astype(np.uint16)
    cases, output = tmp_path / "cases", tmp_path / "out"
    dicom.ct_series(cases / "a", stored, SOPClassUID=MRImageStorage, Modality="MR")
    derived = ["DERIVED", "SECONDARY", "AXIAL"]
    dicom.ct_series(cases / "b", stored, ImageType=derived, SeriesInstanceUID="1.2.3.4.5.6.7")
    assert main(["--model", str(threshold_model), str(cases), str(output)]) == 1
    told = capsys.readouterr().err
    assert "error: a: " in told
    assert "expected an image for threshold, found MR Image Storage, not a CT" in told
    assert "warning: b: a derived image (ImageType)" in told
    assert [case["status"] for case in record_of(output).values()] == ["failed", "predicted"]
    assert not [each for each in dicom.identifiers if each.lower() in told.lower()]


def test_a_case_that_needs_too_much_memory_fails_alone(threshold_model, tmp_path, capsys):
    """1.2 m in steps of 20 microns would be 60,000 voxels along x."""
    model = resampling_model(threshold_model, tmp_path / "model", [0.02, 0.02, 0.02])
    cases, output = tmp_path / "cases", tmp_path / "out"
    cases.mkdir()
    write(cases / "a.nii", blobs((300, 10, 6)), np.diag([4.0, 4, 4, 1]))
    write(cases / "b.nii", blobs((20, 16, 6)), np.diag([0.05, 0.05, 0.05, 1]))
    assert main(["--model", str(model), str(cases), str(output)]) == 1
    told = capsys.readouterr().err
    assert "error: a: volume on the task's grid: expected at most" in told
    assert "found 60000 x 2000 x 1200 voxels, which would take 268.2 GiB" in told
    assert [case["status"] for case in record_of(output).values()] == ["failed", "predicted"]


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate"), OSError(5, "I/O error")])
def test_any_error_of_a_case_fails_it_alone(threshold_model, tmp_path, capsys, monkeypatch, error):
    for name in "ab":
        write(tmp_path / f"{name}.nii", blobs((4, 4, 4)))
    calls = []

    def segment(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return segment_volume(*arguments, **options)

    monkeypatch.setattr("ahnet_tf.inference.case_output.segment_volume", segment)
    paths = [str(tmp_path / name) for name in ("a.nii", "b.nii", "out")]
    assert main(["--model", str(threshold_model), *paths]) == 1
    told = capsys.readouterr().err
    assert f"error: a: {tmp_path / 'a.nii'}: " in told
    assert str(error) in told
    assert [case["status"] for case in record_of(tmp_path / "out").values()] == [
        *("failed", "predicted")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "MODEL", "--overlap", "1"], "overlap"),
        (["--model", "MODEL", "--batch-size", "0"], "batch_size"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "MODEL", "--flips", "xx"], "each once"),
        (["--model", "MODEL", "--threshold", "0"], "threshold"),
        (["--model", "MODEL", "--most-lesions", "0"], "most lesions"),
        (["--model", "MODEL", "--smallest-lesion-mm3", "-1"], "smallest_lesion_mm3"),
        (["--model", "MODEL", "nowhere"], "nowhere"),
        (["--target", "nowhere"], "HOST:PORT"),
    ],
)
def test_bad_options_are_one_line(threshold_model, tmp_path, capsys, options, message):
    write(tmp_path / "scan.nii.gz", blobs((4, 4, 4)))
    options = [str(threshold_model) if option == "MODEL" else option for option in options]
    paths = [str(tmp_path / "scan.nii.gz"), str(tmp_path / "out")]
    assert main([*options, *paths]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_label_maps_of_dicom_series_are_on_their_grid(
    threshold_model, tissues, tmp_path, dicom, capfd
):
    """A case with a harmless name, one named after its patient, and one with gantry tilt."""
    voxels = blobs((9, 7, 5))
    stored = (voxels.transpose(2, 1, 0) + 1024).astype(np.uint16)
    cases = tmp_path / "cases"
    dicom.ct_series(cases / "case7", stored)
    dicom.ct_series(cases / "Doehring", stored, SeriesInstanceUID="1.2.3.4.5.6.7")
    dicom.ct_series(cases / "PID7748123", stored, step=(0, 1, 2), SeriesInstanceUID="1.2.3.4.5.6.8")
    output = tmp_path / "out"
    command = ["--model", str(threshold_model), str(cases), str(output)]
    assert main(command) == 1
    written = sorted(output.glob("*.nii.gz"))
    assert [path.name for path in written] == ["case7.nii.gz", "ct-be6e2e623b7c.nii.gz"]
    for path in written:
        image = nib.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj), tissues(voxels))
        expected = [[-0.7, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, 40], [0, 0, 0, 1]]
        np.testing.assert_allclose(image.affine, expected, atol=1e-6)
    told = "".join(capfd.readouterr()) + (output / "prediction.json").read_text()
    assert "gantry tilt of 26.6 degrees" in told
    assert not [each for each in dicom.identifiers if each.lower() in told.lower()]
    assert main([*command, "--allow", "gantry_tilt"]) == 0
    assert len(list(output.glob("*.nii.gz"))) == 3


def test_dicom_seg_of_a_dicom_series(threshold_model, tissues, tmp_path, dicom, capfd):
    """The SEG names the patient; file names, record and messages do not."""
    voxels = blobs((9, 7, 5))
    stored = (voxels.transpose(2, 1, 0) + 1024).astype(np.uint16)
    cases, output = tmp_path / "cases", tmp_path / "out"
    dicom.ct_series(cases / "Doehring", stored)
    dicom.ct_series(
        cases / "case8", stored, SeriesInstanceUID="1.2.3.4.5.6.7", FrameOfReferenceUID=None
    )
    command = ["--model", str(threshold_model), str(cases), str(output), "--dicom-seg"]
    assert main(command) == 1
    told = "".join(capfd.readouterr()) + (output / "prediction.json").read_text()
    assert "FrameOfReferenceUID" in told
    (path,) = (output / "dicom_seg").iterdir()
    assert path.name.startswith("ct-")
    written = dcmread(path)
    assert written.PatientID == "PID7748123"
    names = [*map(str, output.rglob("*")), told]
    assert not [each for each in dicom.identifiers if each.lower() in "".join(names).lower()]
    # The file contains the digest of the model that is in the record.
    (model,) = json.loads((output / "prediction.json").read_text())["models"]
    assert model["sha256"].startswith(written.DeviceSerialNumber)
    # highdicom returns [slice, row, column], from the head of the patient down.
    found = hd.seg.segread(path).get_volume(combine_segments=True).array[::-1]
    assert np.array_equal(found.transpose(2, 1, 0), tissues(voxels))


def test_dicom_seg_needs_dicom_images(threshold_model, tmp_path, capsys):
    write(tmp_path / "scan.nii.gz", blobs((4, 4, 4)))
    options = [str(tmp_path / "scan.nii.gz"), str(tmp_path / "out"), "--dicom-seg"]
    assert main(["--model", str(threshold_model), *options]) == 1
    assert "--dicom-seg: expected DICOM images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_paths_and_options_in_any_order(threshold_model, tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.nii.gz", blobs((4, 4, 4)))
    first, *others = (str(tmp_path / f"{name}.nii.gz") for name in ("a", "b", "c"))
    output = tmp_path / "out"
    options = ["--overlap", "0.5", *others, "--probabilities", str(output)]
    assert main([first, "--model", str(threshold_model), *options]) == 0
    assert {path.name for path in output.glob("*.nii.gz")} == {"a.nii.gz", "b.nii.gz", "c.nii.gz"}
    assert len(list((output / "probabilities").iterdir())) == 9


@pytest.mark.parametrize(
    "words", [["only.nii.gz"], ["--model", "m"], ["--model", "m", "--target", "h:1", "a", "b"]]
)
def test_an_incomplete_command_shows_its_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: python -m ahnet_tf.predict" in capsys.readouterr().err
