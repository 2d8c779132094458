"""The verify command on valid, questionable and invalid cases, compared with their conversion."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest

from preprocessing.convert import convert
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.tasks import PRESETS
from preprocessing.verify import main, verify

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(5.0, 5.0, 12.0))


def save(folder, number, image, label, affine, label_affine=None):
    label_affine = affine if label_affine is None else label_affine
    nib.save(nib.Nifti1Image(image, affine), folder / f"volume-{number}.nii.gz")
    nib.save(nib.Nifti1Image(label, label_affine), folder / f"segmentation-{number}.nii.gz")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Cases 0 and 1 are valid, 2 has warnings, all later ones can't be converted."""
    folder = tmp_path_factory.mktemp("mixed")
    image, label = make_case(0, 0, SETTINGS)
    other, other_label = make_case(0, 1, SETTINGS)
    affine = image.affine
    save(folder, 0, image.voxels, label.voxels, affine)
    save(folder, 1, other.voxels, other_label.voxels, other.affine)
    save(folder, 2, other.voxels[:, :, :6] + 1024, other_label.voxels[:, :, :6], other.affine)
    # The voxels of case 0, stored from the other end and as real numbers.
    flipped = affine @ np.diag([-1, 1, 1, 1])
    save(folder, 3, image.voxels[::-1].astype(np.float32), label.voxels[::-1], flipped)
    moved = affine.copy()
    moved[:3, 3] += (3, 0, 4)
    save(folder, 4, image.voxels + 1, label.voxels, affine, moved)
    nan = image.voxels.astype(np.float32)
    nan[:2, 3, 3] = np.nan, np.inf
    save(folder, 5, nan, label.voxels, affine)
    save(folder, 6, image.voxels + 2, label.voxels + 5, affine)
    (folder / "volume-7.nii.gz").write_bytes(b"nothing")
    return folder


def test_report(mixed):
    report = verify([str(mixed)], PRESETS["ct_liver"], progress=False)
    cases = {entry["case_id"]: entry for entry in report["cases"]}
    errors, warnings = (
        {
            name: {f["code"]: f["text"] for f in entry["findings"] if f["severity"] == severity}
            for name, entry in cases.items()
        }
        for severity in ("error", "warning")
    )
    assert not errors["volume-0"] | errors["volume-1"] | errors["volume-2"]
    image, label = make_case(0, 0, SETTINGS)
    counts = np.bincount(label.voxels.ravel(), minlength=3).tolist()
    assert list(cases["volume-0"]["label_voxels"].values()) == counts
    assert cases["volume-0"]["shape"] == list(image.voxels.shape)
    assert cases["volume-0"]["spacing_mm"] == [5, 5, 12]
    assert cases["volume-0"]["label"] == "segmentation-0.nii.gz"
    assert cases["volume-0"]["slice_axis"] == "S"
    assert cases["volume-0"]["intensity"]["min"] == image.voxels.min()
    assert cases["volume-0"]["intensity"]["p50"] == np.quantile(image.voxels, 0.5, method="lower")
    assert "rescale intercept" in warnings["volume-2"]["unscaled"]
    assert "found the voxels of case volume-0" in errors["volume-3"]["duplicate"]
    assert "up to 5 mm apart" in errors["volume-4"]["annotation"]
    assert "2 NaN or infinite" in errors["volume-5"]["image"]
    assert "values 5, 6" in errors["volume-6"]["annotation"]
    assert cases["volume-6"]["intensity"]["max"] == image.voxels.max() + 2
    assert errors["volume-7"].keys() == {"incomplete", "image"}
    assert report["errors"] == 6
    assert report == verify([str(mixed)], PRESETS["ct_liver"], workers=2, progress=False)


def test_conversion_reports_the_same(mixed, tmp_path):
    report = verify([str(mixed)], PRESETS["ct_liver"], progress=False)
    task = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=(8, 32, 32))
    manifest = convert([str(mixed)], str(tmp_path / "out"), task, progress=False)
    assert (manifest["converted"], manifest["rejected"]) == (3, 5)
    for verified, converted in zip(report["cases"], manifest["cases"], strict=True):
        texts = {"error": [], "warning": []}
        for finding in verified["findings"]:
            texts[finding["severity"]].append(finding["text"])
        if converted["status"] == "rejected":
            assert converted["reason"] == texts["error"][0]
        else:
            assert texts["error"] == []
            assert [warning["text"] for warning in converted["warnings"]] == texts["warning"]
            assert converted["fingerprint"] == verified["fingerprint"]
    # The duplicate left no record behind.
    shards = {path.name for path in (tmp_path / "out").rglob("*.tfrecord")}
    listed = {shard["name"] for case in manifest["cases"] for shard in case.get("shards", ())}
    assert shards == listed
    assert not any(name.startswith("volume-3") for name in shards)


def test_an_unfit_image_is_rejected_by_both_unless_allowed(tmp_path):
    image, label = make_case(0, 0, SETTINGS)
    (tmp_path / "in").mkdir()
    for number, voxels in enumerate([image.voxels, label.voxels]):
        save(tmp_path / "in", number, voxels, label.voxels, image.affine)
    task = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=(8, 32, 32))
    report = verify([str(tmp_path / "in")], task, progress=False)
    good, unfit = report["cases"]
    (error,) = [each for each in unfit["findings"] if each["severity"] == "error"]
    assert error["code"] == "unfit"
    assert (
        "volume-1.nii.gz: expected an image for ct_liver, found 2 values from 0 to 1"
        in error["text"]
    )
    assert unfit["shape"] == good["shape"]
    manifest = convert([str(tmp_path / "in")], str(tmp_path / "out"), task, progress=False)
    assert [case["status"] for case in manifest["cases"]] == ["converted", "rejected"]
    assert manifest["cases"][1]["reason"] == error["text"]
    allow = ["unfit_image"]
    assert verify([str(tmp_path / "in")], task, allow=allow, progress=False)["errors"] == 0
    manifest = convert(
        [str(tmp_path / "in")], str(tmp_path / "b"), task, allow=allow, progress=False
    )
    assert "few_values" in [each["code"] for each in manifest["cases"][1]["warnings"]]


def test_command(mixed, tmp_path, capsys):
    output = tmp_path / "verify.json"
    assert main([str(mixed), "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert len(report["cases"]) == 8
    assert "error volume-3, duplicate: volume-3.nii.gz" in printed
    assert printed.splitlines()[-1].startswith("8 cases, 6 errors, ")
    assert main([str(mixed), "--output", str(output)]) == 1
    assert "Give --overwrite" in capsys.readouterr().err
    assert main([str(mixed), "--workers", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_what_is_no_case_is_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    folder, output = tmp_path / "set", tmp_path / "verify.json"
    for path in ("test-volume-1.nii", "a/volume-1.nii", "b/volume-1.nii"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    assert main([str(folder), "--output", str(output)]) == 1
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(output.read_text())
    assert report["passed_over"] == [
        f"{folder}/test-volume-1.nii: a test image without a label map"
    ]
    assert report["renamed"] == [
        f"{folder}/{name}/volume-1.nii: case volume-1 renamed to {name}_volume-1" for name in "ab"
    ]
    for kind in ("passed over", "renamed"):
        for line in report[kind.replace(" ", "_")]:
            assert f"{kind}: {line}" in printed


def test_a_killed_worker_is_one_line(mixed, monkeypatch, capsys):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    # Its workers find it under the name of the function that it replaces.
    killed.__module__, killed.__qualname__ = "preprocessing.verify", "verify_case"
    monkeypatch.setattr("preprocessing.verify.verify_case", killed)
    assert main([str(mixed), "--workers", "2"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: --workers: expected worker processes that finish" in line


@pytest.mark.parametrize("columns", [40, 79, 200])
def test_summary_fits_the_terminal(mixed, columns):
    sound = mixed.parent / f"sound{columns}"
    sound.mkdir()
    for number in (0, 1):
        for kind in ("volume", "segmentation"):
            name = f"{kind}-{number}.nii.gz"
            (sound / name).symlink_to(mixed / name)
    result = subprocess.run(
        [sys.executable, "-m", "preprocessing.verify", str(sound)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(columns)},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "48x40x1" in result.stdout
    assert lines[-1].startswith("2 cases, 0 errors, ")


def test_real_case_takes_seconds(real_data):
    report = verify([str(real_data / "ircadb01_case17")], PRESETS["ct_liver"], progress=False)
    (case,) = report["cases"]
    assert case["findings"] == []
    assert (case["orientation"], case["slice_axis"]) == ("LPS", "S")
    assert case["label_voxels"]["tumour"] == 185990
