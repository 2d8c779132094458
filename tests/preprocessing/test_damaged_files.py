"""Converts hundreds of damaged files: no crash, no hang, bounded memory, every case reported."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.quality_checks import check_image
from tests.preprocessing.damaged_files import (
    AFFINE,
    EITHER,
    REFUSED,
    SAME_VOXELS,
    SOUND,
    paths_below,
    write_corpus,
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS, TIMEOUT_S = 60, 500
MEBIBYTES = 200

# In a separate process, to measure its peak memory and to stop it if it hangs.
RUN = """
import json, resource, sys, time
from pathlib import Path
from preprocessing.datasets.discovery import find_cases
from preprocessing.convert import convert
from preprocessing.tasks import Task

folder, output = sys.argv[1:]
task = Task("t", ("background", "organ", "lesion"), (-200.0, 250.0), patch_shape_zyx=(4, 8, 8),
            patches_per_case=2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
convert([folder + "/sound"], output + "/sound", task, progress=False)
before, start = peak(), time.process_time()
convert([folder + "/corpus"], output + "/records", task, progress=False)
result = {"mebibytes": peak() - before, "cpu_seconds": time.process_time() - start, "folders": {}}
for case in find_cases([folder + "/corpus"], need_labels=True):
    path = (case.image_path or case.label_path).relative_to(folder + "/corpus")
    result["folders"][case.case_id] = path.parts[0]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def conversion(tmp_path_factory, dicom):
    folder = tmp_path_factory.mktemp("damaged")

    def write_dicom(place, hounsfield):
        positions = [(0, 0, 5 * z) for z in range(len(hounsfield))]
        tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PixelSpacing": [0.8, 0.8]}
        frames = dicom.multi_frame(hounsfield + 1024, positions=positions, ct=True, **tags)
        frames.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dicom.save(frames, place / "frames.dcm")
        dicom.ct_series(
            place / "series", hounsfield + 1025, origin=(0, 0, 0), step=(0, 0, 5), **tags
        )
        return place / "frames.dcm", place / "series"

    corpus = write_corpus(folder / "corpus", 0, write_dicom)
    for name in ("0000-sound-0", "0001-sound-1"):
        (folder / "sound").mkdir(exist_ok=True)
        (folder / "sound" / name).symlink_to(folder / "corpus" / name)
    try:
        result = subprocess.run(
            [sys.executable, "-c", RUN, str(folder), str(folder / "out")],
            capture_output=True,
            cwd=ROOT,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"timeout: {error.stderr}")
    assert result.returncode == 0, result.stderr.decode(errors="replace")[-3000:]
    measured = json.loads(result.stdout.splitlines()[-1])
    output = folder / "out" / "records"
    manifest = json.loads((output / "manifest.json").read_text())
    return corpus, manifest, measured, output


def test_at_least_three_hundred_files_are_damaged(conversion):
    kinds = Counter(conversion[0].expected.values())
    assert kinds[REFUSED] + kinds[EITHER] + kinds[SAME_VOXELS] >= 300
    assert kinds[REFUSED] >= 150


def test_time_and_memory_are_bounded(conversion):
    measured = conversion[2]
    assert measured["mebibytes"] < MEBIBYTES
    assert measured["cpu_seconds"] < CPU_SECONDS


def test_every_folder_is_one_case_with_its_outcome(conversion):
    corpus, manifest, measured, _ = conversion
    expected = corpus.expected
    folders = [measured["folders"][case["case_id"]] for case in manifest["cases"]]
    assert sorted(folders) == sorted(expected)
    assert manifest["found"] == len(expected) == manifest["converted"] + manifest["rejected"]
    statuses = Counter(case["status"] for case in manifest["cases"])
    assert statuses == {name: manifest[name] for name in ("converted", "rejected")}
    surprises = []
    for folder, case in zip(folders, manifest["cases"], strict=True):
        allowed = {SOUND: {"converted"}, REFUSED: {"rejected"}}.get(
            expected[folder], {"converted", "rejected"}
        )
        if case["status"] not in allowed:
            surprises.append((folder, case["status"], case.get("reason")))
    assert surprises == []


def test_reasons_are_one_line_each(conversion):
    for case in conversion[1]["cases"]:
        if case["status"] == "rejected":
            reason = case["reason"]
            assert reason.splitlines() == [reason]
            assert "expected " in reason
            assert "found " in reason
            assert "Traceback" not in reason


def test_damaged_streams_give_the_original_voxels_or_nothing(conversion):
    corpus, manifest, measured, _ = conversion
    written = check_image(Volume(corpus.image, AFFINE), PRESETS["ct_liver"]).fingerprint
    unharmed = 0
    for case in manifest["cases"]:
        kind = corpus.expected[measured["folders"][case["case_id"]]]
        if kind == SAME_VOXELS and case["status"] == "converted":
            assert case["fingerprint"] == written
        # Only the first case with the same voxels is converted.
        unharmed += kind == SAME_VOXELS and "the voxels of case" in case.get("reason", "")
    assert unharmed > 0


def test_no_shard_without_a_converted_case(conversion):
    _, manifest, _, output = conversion
    listed = {
        f"{case['split']}/{shard['name']}"
        for case in manifest["cases"]
        for shard in case.get("shards", ())
    }
    assert {str(path.relative_to(output)) for path in paths_below(output)} == listed | {
        *("manifest.json", "task.json")
    }
    assert np.all([len(path.name) < 200 for path in paths_below(output)])
