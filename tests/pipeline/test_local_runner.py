"""The local runner on broken records and on input that can't work: where it stops, and what it says."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
import tensorflow as tf

from pipeline.components.schema import schema_text
from pipeline.local_runner import main
from preprocessing.tasks import PRESETS


def broken_copy(source, target) -> None:
    """Writes records of another program: without their case ids, and with cut images."""
    with tf.io.TFRecordWriter(str(target)) as writer:
        for record in tf.data.TFRecordDataset(str(source)):
            example = tf.train.Example.FromString(record.numpy())
            del example.features.feature["case_id"]
            example.features.feature["image"].bytes_list.value[0] = b"pixels"
            writer.write(example.SerializeToString())


@pytest.mark.slow
def test_broken_records_stop_the_run_before_training(
    records, patch, task, write_records, tmp_path, tiny_options, capsys
):
    """A wrong spacing, liver and tumour swapped; the other split without case ids and with cut images.

    TFX's and our own components must get as far as the gate with all of this.
    """
    voxels = patch.case_label_voxels
    poisoned = [
        replace(patch, spacing_mm=(10.0, 10.0, 55.0)),
        replace(patch, case_id="case-2", case_label_voxels=(voxels[0], voxels[2], voxels[1])),
        replace(patch, case_id="case-3", case_label_voxels=(voxels[0], voxels[2], voxels[1])),
    ]
    write_records(records / "train", poisoned, task)
    (file,) = (records / "eval").iterdir()
    broken_copy(file, records / "eval" / "other.tfrecord")
    file.unlink()
    run = tmp_path / "run"
    assert main(["--input", str(records), "--output", str(run), *tiny_options]) == 1
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith(
        "error: data validation: expected records that match their task, each other and the span "
        "before, found "
    )
    assert "case_id: missing in all 1 records (eval split)" in line
    assert (
        "image: 6 bytes long, not 16384, as patches of 8 x 32 x 32 voxels (z, y, x) are (eval split)"
        in line
    )
    assert "spacing_z_mm: " in line
    assert "55" in line
    assert "the two may be swapped (train split)" in line
    assert "Convert the volumes again with this version and this task." in line
    assert "Trainer" not in printed.out
    assert not (run / "artifacts" / "Trainer2D").exists()


@pytest.mark.slow
def test_a_components_own_error_comes_last_in_one_line(records, tmp_path, tiny_options, capsys):
    """The second record of a file is damaged: StatisticsGen is the first to read it."""
    (file,) = (records / "train").iterdir()
    content = file.read_bytes()
    file.write_bytes(content + content[:-100] + bytes(100))
    run = tmp_path / "run"
    assert main(["--input", str(records), "--output", str(run), *tiny_options]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: component StatisticsGen: ")
    assert "Traceback" not in "".join(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(records, tmp_path, tiny_options, capsys):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    assert main(["--input", str(records), "--output", str(folder), *tiny_options]) == 1
    assert "a folder that can be written to, found Permission denied" in capsys.readouterr().err


def test_input_that_cannot_work_is_refused_before_anything_is_launched(
    records, tmp_path, tiny_options, capsys
):
    run = tmp_path / "run"

    def refusal(*options: str) -> str:
        assert main(["--input", str(records), "--output", str(run), *tiny_options, *options]) == 1
        assert not (run / "metadata.sqlite").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no such folder" in refusal("--input", str(tmp_path / "nowhere"))
    assert "a Dice from 0 to 1, found 1.5" in refusal("--threshold-liver", "1.5")
    file = tmp_path / "file"
    file.touch()
    assert "a folder that can be written to" in refusal("--output", str(file))
    inside = refusal("--output", str(records / "run"))
    assert "--output: expected a folder outside the data" in inside
    assert not (records / "run").exists()
    assert "Did you mean --threshold-liver?" in refusal("--threshold-livr", "0.5")
    assert "Nonsense" in refusal("--runner", "NonsenseRunner")
    assert "a readable schema" in refusal("--schema", str(tmp_path / "schema.pbtxt"))
    other = tmp_path / "other.pbtxt"
    other.write_text(schema_text(PRESETS["dbt_lesion"]), encoding="utf-8")
    assert "entries for the features of task tiny_ct" in refusal("--schema", str(other))
    assert "a blessed model for records of this task" in refusal("--warm-start")
    assert "span-1, span-2, found none" in refusal("--spans", "2")
    odd = shutil.copytree(records, tmp_path / "records [2]")
    assert "[2]. Rename the folder" in refusal("--input", str(odd))
    assert "--output: expected a path without any of * ? [ \\, found" in refusal(
        "--output", str(tmp_path / "run*")
    )
    for name in ("", "a/../../b", "my model"):
        assert "name: expected 1 to 63 lower-case letters" in refusal("--pipeline-name", name)
    assert "names among drift" in refusal("--allow", "everything")
    (file,) = (records / "eval").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: expected readable TFRecords" in refusal()
    file.write_bytes(b"")
    assert "records of the eval split" in refusal()
    shutil.rmtree(records / "eval")
    assert "eval: expected TFRecords" in refusal()
