"""The whole Beam job: what is written, that it is always the same, and how it handles bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf

from preprocessing.convert import main
from preprocessing.errors import InputError
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.phantom.dataset import write_cases
from preprocessing.records.schema import encode_patch, parse_example
from preprocessing.tasks import PRESETS, load_task
from preprocessing.volumes.geometry import to_target_grid

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(6.5, 6.5, 13.0))
PATCHES = ["--patch-shape", "8", "32", "32", "--patches-per-case", "4"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_cases(folder, 5, 0, settings=SETTINGS)
    return folder


def convert(output, *inputs, options=()):
    command = ["--input", *map(str, inputs), "--output", str(output), *PATCHES, *options]
    return main(command)


def manifest_of(output):
    return json.loads((output / "manifest.json").read_text())


def tree(folder):
    """{relative path: content} of all files below a folder, hidden ones included."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def records_of(output, split):
    task = load_task(str(output / "task.json"))
    paths = sorted(map(str, (output / split).glob("*.tfrecord")))
    return [parse_example(record, task) for record in tf.data.TFRecordDataset(paths)]


@pytest.fixture(scope="module")
def records(phantom, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "records"
    assert convert(output, phantom) == 0
    return output


class TestLabelGeometry:
    """101 slices, resampled from 2.5 to 5 mm: at the label map's own spacing they would become 51."""

    AFFINE = np.diag([2.5, 2.5, 2.5, 1.0])
    IMAGE = np.random.default_rng(0).integers(-900, 900, (20, 20, 101)).astype(np.int16)
    LABEL = np.zeros(IMAGE.shape, np.uint8)
    LABEL[5:15, 5:15, 40:60] = 1
    LABEL[8:12, 8:12, 45:55] = 2

    def write(self, folder, image_affine, label_affine, label=LABEL):
        folder.mkdir()
        image = nib.Nifti1Image(self.IMAGE, None)
        image.header.set_sform(image_affine, 1)
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / "volume-0.nii.gz")
        nib.save(nib.Nifti1Image(label, label_affine), folder / "segmentation-0.nii.gz")
        return folder

    def converted(self, tmp_path, folder, *options):
        label_of = []
        for split in ("train", "eval"):
            output, splits = tmp_path / f"records-{split}", tmp_path / f"{split}.json"
            splits.write_text(json.dumps({"train": [], "eval": []} | {split: ["volume-0"]}))
            more = ["--task", "ct_liver_small", "--splits", str(splits)]
            convert(output, folder, options=[*more, *options])
            (case,) = manifest_of(output)["cases"]
            label_of.append(case.get("label_voxels", case.get("reason")))
        assert label_of[0] == label_of[1]
        return label_of[0]

    def test_spacing_one_float32_step_apart(self, tmp_path):
        below = self.AFFINE.copy()
        below[2, 2] = np.nextafter(np.float32(2.5), np.float32(0))
        same = self.write(tmp_path / "same", below, below)
        other = self.write(tmp_path / "other", below, self.AFFINE)
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        expected = self.converted(tmp_path / "a", same)
        assert expected["tumour"] > 0
        assert self.converted(tmp_path / "b", other) == expected

    def test_a_lost_affine_needs_leave(self, tmp_path):
        lost = self.write(tmp_path / "lost", self.AFFINE, np.eye(4))
        assert "With --allow label_geometry" in self.converted(tmp_path, lost)
        allowed = self.converted(tmp_path, lost, "--allow", "label_geometry", "--overwrite")
        good = self.write(tmp_path / "good", self.AFFINE, self.AFFINE)
        assert self.converted(tmp_path, good, "--overwrite") == allowed

    def test_a_fault_in_a_patch_rejects_the_case(self, tmp_path, monkeypatch):
        def fail(*_):
            raise MemoryError

        monkeypatch.setattr("preprocessing.records.case_conversion.encode_patch", fail)
        good = self.write(tmp_path / "good", self.AFFINE, self.AFFINE)
        assert "fits into memory" in self.converted(tmp_path, good)


class TestRecords:
    def test_manifest_counts_every_case_and_matches_the_files(self, records):
        manifest = manifest_of(records)
        assert (manifest["found"], manifest["converted"], manifest["rejected"]) == (5, 5, 0)
        cases = {case["case_id"]: case for case in manifest["cases"]}
        assert list(cases) == [f"volume-{n}" for n in range(5)]
        assert {case["split"] for case in cases.values()} == {"train", "eval"}
        written = set(tree(records)) - {"manifest.json", "task.json"}
        listed = set()
        for case in cases.values():
            image, label = make_case(0, int(case["case_id"][7:]), SETTINGS)
            voxels = np.bincount(label.voxels.ravel(), minlength=3).tolist()
            names = ("background", "liver", "tumour")
            assert case["label_voxels"] == dict(zip(names, voxels, strict=True))
            assert case["input_shape_xyz"] == list(image.voxels.shape)
            assert case["spacing_mm"] == [6.5, 6.5, 13.0]
            assert case["patches"] == sum(shard["records"] for shard in case["shards"])
            for shard in case["shards"]:
                name = f"{case['split']}/{shard['name']}"
                listed.add(name)
                path = records / name
                assert path.stat().st_size == shard["size"]
                digest = subprocess.run(
                    ["sha256sum", path], capture_output=True, text=True, check=True
                )
                assert digest.stdout.split()[0] == shard["sha256"]
        assert written == listed
        assert manifest["settings"]["seed"] == 0
        assert manifest["versions"]["tensorflow"] == tf.__version__

    def test_the_task_is_written(self, records):
        expected = attrs.evolve(
            PRESETS["ct_liver"], patch_shape_zyx=(8, 32, 32), patches_per_case=4
        )
        assert load_task(str(records / "task.json")) == expected

    def test_evaluation_records_rebuild_each_volume(self, records):
        task = load_task(str(records / "task.json"))
        rebuilt = {}
        for record in records_of(records, "eval"):
            name = record["case_id"].numpy().decode()
            shape = [int(record[f"volume_{axis}"]) for axis in "zyx"]
            image, label, seen = rebuilt.setdefault(
                name, (np.zeros(shape, np.int16), np.zeros(shape, np.uint8), np.zeros(shape))
            )
            inside = tuple(slice(0, int(record[f"valid_{axis}"])) for axis in "zyx")
            place = tuple(
                slice(int(record[f"origin_{axis}"]), int(record[f"origin_{axis}"]) + part.stop)
                for axis, part in zip("zyx", inside, strict=True)
            )
            image[place] = record["image"].numpy()[..., 0][inside]
            label[place] = record["label"].numpy()[inside]
            seen[place] += record["weight"].numpy()[inside]
            assert record["weight"].numpy().sum() == np.prod([part.stop for part in inside])
        assert rebuilt
        for name, (image, label, seen) in rebuilt.items():
            assert (seen == 1).all()
            expected = make_case(0, int(name[7:]), SETTINGS)
            assert np.array_equal(image, to_target_grid(expected[0], task)[0])
            assert np.array_equal(label, to_target_grid(expected[1], task, label=True)[0])

    def test_training_records_are_balanced_patches(self, records):
        train = records_of(records, "train")
        cases = [case for case in manifest_of(records)["cases"] if case["split"] == "train"]
        assert len(train) == 4 * len(cases)
        with_foreground = sum(bool((record["label"].numpy() > 0).any()) for record in train)
        assert with_foreground >= 3 * len(cases)

    def test_another_seed_draws_other_patches_of_the_same_cases(self, records, phantom, tmp_path):
        assert convert(tmp_path / "other", phantom, options=["--seed", "1"]) == 0
        there, here = tree(tmp_path / "other"), tree(records)
        assert there.keys() == here.keys()
        for name in here:
            if name.endswith(".tfrecord"):
                assert (there[name] == here[name]) == name.startswith("eval/")


class TestSplits:
    def test_own_splits(self, phantom, tmp_path, capsys):
        path = tmp_path / "splits.json"
        path.write_text(json.dumps({"train": ["volume-3", "volume-0"], "eval": ["volume-1"]}))
        assert convert(tmp_path / "out", phantom, options=["--splits", str(path)]) == 1
        manifest = manifest_of(tmp_path / "out")
        splits = {case["case_id"]: case.get("split") for case in manifest["cases"]}
        assert splits == {
            **{"volume-0": "train", "volume-1": "eval", "volume-3": "train"},
            **{"volume-2": None, "volume-4": None},
        }
        assert "expected 'volume-2' in a split of" in capsys.readouterr().err

    def test_one_case_trains_with_a_warning(self, phantom, tmp_path, capsys):
        one = tmp_path / "one"
        one.mkdir()
        (one / "ct.nii.gz").symlink_to(phantom / "volume-0.nii.gz")
        (one / "label.nii.gz").symlink_to(phantom / "segmentation-0.nii.gz")
        assert convert(tmp_path / "out", one) == 0
        assert "warning: no case in the split eval" in capsys.readouterr().err
        assert list(tree(tmp_path / "out" / "eval")) == []
        assert len(records_of(tmp_path / "out", "train")) == 4

    def test_a_rejected_case_does_not_leave_a_split_empty(self, phantom, tmp_path):
        # volume-0 is the only one of these whose place is below the fraction; it is damaged.
        data = tmp_path / "data"
        data.mkdir()
        for number in (0, 1, 2):
            for kind in ("volume", "segmentation"):
                name = f"{kind}-{number}.nii.gz"
                (data / name).write_bytes((phantom / name).read_bytes())
        (data / "volume-0.nii.gz").write_bytes(b"")
        assert convert(tmp_path / "out", data, options=["--allow-rejected"]) == 0
        cases = {case["case_id"]: case for case in manifest_of(tmp_path / "out")["cases"]}
        assert cases["volume-0"]["status"] == "rejected"
        assert {cases[name]["split"] for name in ("volume-1", "volume-2")} == {"train", "eval"}
        listed = {f"{c['split']}/{s['name']}" for c in cases.values() for s in c.get("shards", ())}
        assert set(tree(tmp_path / "out")) == listed | {"manifest.json", "task.json"}


def damaged_set(folder):
    """Writes one valid LiTS case and one of each kind of damage; returns {case id: words}."""
    image, label = make_case(0, 0, SETTINGS)
    expected = {}

    def case(number, words, image_voxels=image.voxels, label_voxels=label.voxels, move=0.0):
        affine = image.affine.copy()
        nib.save(nib.Nifti1Image(image_voxels, affine), folder / f"volume-{number}.nii.gz")
        affine[0, 3] += move
        nib.save(nib.Nifti1Image(label_voxels, affine), folder / f"segmentation-{number}.nii.gz")
        expected[f"volume-{number}"] = words
        return folder / f"volume-{number}.nii.gz", folder / f"segmentation-{number}.nii.gz"

    folder.mkdir()
    case(1, None)
    case(2, ["volume-2.nii.gz", "gzip"])[0].write_bytes(
        (folder / "volume-1.nii.gz").read_bytes()[:20_000]
    )
    case(3, ["segmentation-3.nii.gz", "image's shape"], label_voxels=label.voxels[:, :, 1:])
    case(4, ["segmentation-4.nii.gz", "affine", "up to 20 mm apart"], move=20.0)
    seven = label.voxels.copy()
    seven[0, 0, 0] = 7
    case(5, ["segmentation-5.nii.gz", "label values 0 background", "7"], label_voxels=seven)
    four = np.stack([image.voxels] * 2, -1)
    case(6, ["volume-6.nii.gz", "3D", "4D"], image_voxels=four)
    case(7, ["volume-7.nii.gz", "contrast", "0"], image_voxels=np.zeros_like(image.voxels))
    case(8, ["volume-8.nii.gz", "label map", "none"])[1].unlink()
    case(9, ["segmentation-9.nii.gz", "image", "none"])[0].unlink()
    nan = image.voxels.astype(np.float32)
    nan[3, 3, 3] = np.nan
    case(10, ["volume-10.nii.gz", "finite", "NaN"], image_voxels=nan)
    image_path, _ = case(11, ["volume-11.nii.gz", "a broken link"])
    image_path.unlink()
    image_path.symlink_to("nowhere.nii.gz")
    case(12, ["volume-12.nii.gz", "NIfTI header"])[0].write_bytes(b"text" * 100)
    return expected


class TestBadInput:
    def test_each_kind_is_reported_in_one_line_and_the_others_are_converted(self, tmp_path, capsys):
        expected = damaged_set(tmp_path / "data")
        assert convert(tmp_path / "out", tmp_path / "data") == 1
        errors = capsys.readouterr().err.splitlines()
        lines = {line.split(":")[0]: line for line in errors if line.startswith("rejected")}
        manifest = manifest_of(tmp_path / "out")
        assert (manifest["found"], manifest["converted"], manifest["rejected"]) == (12, 1, 11)
        for case in manifest["cases"]:
            words = expected.pop(case["case_id"])
            if words is None:
                assert case["status"] == "converted"
                continue
            assert case["status"] == "rejected"
            assert "\n" not in case["reason"]
            line = lines[f"rejected {case['case_id']}"]
            assert line == f"rejected {case['case_id']}: {case['reason']}"
            for word in ["expected", "found", *words]:
                assert word in line
        assert expected == {}
        assert len(records_of(tmp_path / "out", "train")) == 4

    def test_what_is_no_case_is_in_the_manifest(self, tmp_path, capsys):
        data = tmp_path / "data"
        data.mkdir()
        for name in ("volume-1.nii", "test-volume-1.nii", os.fsdecode(b"volume-\xff.nii")):
            (data / name).touch()
        assert convert(tmp_path / "out", data) == 1
        assert "passed over 1 files or folders, see the manifest" in capsys.readouterr().err
        reason = f"{data}/test-volume-1.nii: a test image without a label map"
        assert manifest_of(tmp_path / "out")["passed_over"] == [reason]

    @pytest.mark.parametrize(
        "error", [MemoryError("Unable to allocate"), InputError("a", "b", "c")]
    )
    def test_an_error_while_patches_are_cut_rejects_the_case_alone(
        self, phantom, tmp_path, monkeypatch, error
    ):
        def encode(patch, task):
            if patch.case_id == "volume-1" and patch.index == 2:
                raise error
            return encode_patch(patch, task)

        monkeypatch.setattr("preprocessing.records.case_conversion.encode_patch", encode)
        in_process = ["--direct_running_mode", "in_memory", "--shard-mib", "1"]
        assert convert(tmp_path / "out", phantom, options=in_process) == 1
        cases = {case["case_id"]: case for case in manifest_of(tmp_path / "out")["cases"]}
        assert [case["status"] for case in cases.values()].count("converted") == 4
        assert str(error) in cases["volume-1"]["reason"]
        assert not any(name.startswith("volume-1") for name in tree(tmp_path / "out"))

    def test_without_a_valid_case_only_the_manifest_is_written(self, tmp_path, capsys):
        data = tmp_path / "data"
        data.mkdir()
        (data / "volume-0.nii.gz").write_bytes(b"")
        (data / "segmentation-0.nii.gz").write_bytes(b"")
        assert convert(tmp_path / "out", data, options=["--allow-rejected"]) == 1
        assert set(tree(tmp_path)) == {
            *("data/volume-0.nii.gz", "data/segmentation-0.nii.gz"),
            "out/manifest.json",
        }
        assert manifest_of(tmp_path / "out")["rejected"] == 1
        assert "expected at least one valid case" in capsys.readouterr().err
        # Such an output is no data set: the next attempt may take its place.
        assert convert(tmp_path / "out", data) == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--task", "ct_livr"], "Did you mean 'ct_liver'?"),
            (["--patchs-per-case", "3"], "Did you mean --patches-per-case?"),
            (["--patches-per-case", "0"], "at least 1"),
            (["--eval-fraction", "1"], "a share from 0 up to below 1"),
            (["--splits", "none.json"], "none.json: No such file"),
            (["--seed", "-1"], "a whole number from 0 to 4294967295"),
            (["--runner", "NoSuchRunner"], "--runner"),
        ],
    )
    def test_settings_are_one_line(self, phantom, tmp_path, capsys, options, message):
        assert convert(tmp_path / "out", phantom, options=options) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error
        assert list(tmp_path.iterdir()) == []

    def test_empty_and_missing_folders(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        for name, message in (("empty", "none in this folder"), ("none", "no such file")):
            assert convert(tmp_path / "out", tmp_path / name) == 1
            error = capsys.readouterr().err.strip()
            assert message in error
            assert "\n" not in error
        assert not (tmp_path / "out").exists()

    def test_finished_data_and_foreign_files_are_not_replaced(self, phantom, tmp_path, capsys):
        output = tmp_path / "out"
        assert convert(output, phantom) == 0
        before = tree(output)
        assert convert(output, phantom, options=["--seed", "3"]) == 1
        assert "Give --overwrite" in capsys.readouterr().err
        assert tree(output) == before
        assert convert(output, phantom, options=["--seed", "3", "--overwrite"]) == 0
        assert manifest_of(output)["settings"]["seed"] == 3
        (output / "thesis.txt").write_text("mine")
        assert convert(output, phantom, options=["--overwrite"]) == 1
        assert "found thesis.txt in" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_help_imports_no_framework():
    script = (
        "import sys\n"
        "from preprocessing.convert import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'tensorflow', 'apache_beam', 'nibabel', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_real_volumes(real_data, tmp_path):
    inputs = [real_data / "ircadb01_case17", real_data / "totalsegmentator_example"]
    if not all(folder.is_dir() for folder in inputs):
        pytest.skip("the two CT folders are not there")
    output = tmp_path / "out"
    assert (
        main(
            [
                *("--input", *map(str, inputs), "--output", str(output)),
                *("--task", "ct_liver_small", "--patches-per-case", "2"),
            ]
        )
        == 0
    )
    cases = {case["case_id"]: case for case in manifest_of(output)["cases"]}
    real = cases["ircadb01_case17"]
    assert real["orientation"] == "LPS"
    assert real["shape_zyx"] == [38, 152, 152]
    litres = real["label_voxels"]["tumour"] * 2.5 * 2.5 * 5 / 1e6
    assert litres == pytest.approx(185_990 * 0.743 * 0.743 * 1.6 / 1e6, rel=0.02)
    assert cases["totalsegmentator_example"]["label_voxels"]["tumour"] == 0
