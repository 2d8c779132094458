"""Errors, commands, outputs and tasks."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from preprocessing.cli import make_parser, run_command
from preprocessing.errors import AHNetError, InputError
from preprocessing.files import (
    _exchanged,
    atomic_write,
    input_state,
    remove_stale_temporaries,
    write_json,
)
from preprocessing.tasks import PRESETS, Task, load_task, task_from_dict


class TestErrors:
    def test_one_line_with_where_expected_found_and_remedy(self):
        error = InputError("a.nii", "a 3D\nvolume", "4D", "Cut it.")
        assert str(error) == "a.nii: expected a 3D volume, found 4D. Cut it."
        assert str(InputError("a.nii", "x", ["y"])) == "a.nii: expected x, found ['y']"

    def test_survives_a_trip_between_processes(self):
        import pickle

        error = pickle.loads(pickle.dumps(InputError("a", "b", "c", "d")))
        assert (type(error), str(error)) == (InputError, "a: expected b, found c. d")


class TestCommands:
    def run(self, function, *options):
        parser = make_parser("a.b", "Does.", ["python -m a.b --debug"])
        return run_command(function, parser.parse_args(options))

    def test_exit_codes(self):
        assert self.run(lambda arguments: None) == 0
        assert self.run(lambda arguments: 3) == 3

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (AHNetError("x", "y", "z"), "error: x: expected y, found z"),
            (FileNotFoundError(2, "No such file", "a.nii"), "error: a.nii: No such file"),
            (OSError("disk\nfull"), "error: disk full"),
        ],
    )
    def test_a_users_error_is_one_line(self, capsys, error, line):
        def fail(arguments):
            raise error

        assert self.run(fail) == 1
        assert capsys.readouterr().err == line + "\n"
        with pytest.raises(type(error)):
            self.run(fail, "--debug")

    def test_other_errors_are_not_hidden(self):
        with pytest.raises(ZeroDivisionError):
            self.run(lambda arguments: 1 // 0)
        with pytest.raises(ModuleNotFoundError, match="no_such_package"):
            self.run(lambda arguments: importlib.import_module("no_such_package"))

    @pytest.mark.parametrize(
        ("package", "extra", "glibc", "too_old"),
        [
            ("tfx", "pipeline", "2.36", sys.version_info >= (3, 11)),
            ("tfx", "pipeline", "2.39", False),
            ("grpc_health", "serving", "2.36", False),
        ],
    )
    def test_a_missing_extra_is_one_line(self, capsys, monkeypatch, package, extra, glibc, too_old):
        # Parts that another test has imported would be found without their package.
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", glibc))
        assert self.run(lambda arguments: importlib.import_module(package)) == 1
        remedy = f"In a checkout, pip install '.[{extra}]' adds it."
        if too_old:
            remedy = (
                "TFX 1.21 needs glibc 2.39, and this system has 2.36: in a checkout, "
                "'make env STACK=2.15' makes an environment with TFX 1.15."
            )
        assert capsys.readouterr().err == (
            f"error: {extra}: expected the package {package}, found none. {remedy}\n"
        )

    def test_interruption(self, capsys):
        def interrupt(arguments):
            raise KeyboardInterrupt

        assert self.run(interrupt) == 130
        assert capsys.readouterr().err == "interrupted\n"


KILLED = """
import os, shutil, signal, sys
from preprocessing import files
kill = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
with files.atomic_write(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "new").write_text("2")
    {}
    {} = kill
"""


def replacing(target, change, *steps):
    """Replaces a folder in a process that dies at the first of some steps; returns its exit code."""
    code = KILLED.format(change, " = ".join(steps))
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, "-c", code, str(target)], cwd=root).returncode


class TestFiles:
    def test_a_file_appears_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "new" / "a.nii.gz"
        with atomic_write(path) as temporary:
            assert temporary.name.endswith(".nii.gz")
            temporary.write_text("1")
            assert not path.exists()
        assert path.read_text() == "1"

        def fail():
            with atomic_write(path) as temporary:
                temporary.write_text("2")
                raise ValueError("half way")

        with pytest.raises(ValueError, match="half way"):
            fail()
        assert path.read_text() == "1"
        assert [each.name for each in path.parent.iterdir()] == ["a.nii.gz"]

    def test_a_folder_replaces_a_folder(self, tmp_path):
        target = tmp_path / "model"
        for content in "12":
            with atomic_write(target) as temporary:
                temporary.mkdir()
                (temporary / content).write_text(content)
        assert [each.name for each in target.iterdir()] == ["2"]
        assert [each.name for each in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("recover", ["the next writer", "the clean-up"])
    def test_a_process_killed_between_two_renames_loses_no_folder(self, tmp_path, recover):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old").write_text("1")
        killed = replacing(
            tmp_path / "model", "files._exchanged = lambda *paths: False", "os.replace"
        )
        assert killed == -signal.SIGKILL
        # As on a file system that can't exchange two folders: the old one was moved aside.
        assert not (tmp_path / "model").exists()
        if recover == "the clean-up":
            remove_stale_temporaries(tmp_path)
            assert [each.name for each in tmp_path.iterdir()] == ["model"]
        else:
            with pytest.raises(ValueError, match="half way"), atomic_write(tmp_path / "model"):
                raise ValueError("half way")
        assert [each.name for each in (tmp_path / "model").iterdir()] == ["old"]

    def test_folders_are_exchanged_in_one_step(self, tmp_path):
        for name in ("model", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "old").write_text(name)
        if not _exchanged(tmp_path / "model", tmp_path / "other"):
            pytest.skip("this file system can't exchange two folders")
        assert (tmp_path / "model" / "old").read_text() == "other"
        # Killed by the first step that could leave the target without a folder, or else at the end.
        killed = replacing(tmp_path / "model", "", "os.rename", "os.replace", "shutil.rmtree")
        assert killed == -signal.SIGKILL
        assert [each.name for each in (tmp_path / "model").iterdir()] == ["new"]

    def test_a_failure_between_two_renames_keeps_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr("preprocessing.files._exchanged", lambda *paths: False)
        monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("no")))
        (tmp_path / "model").mkdir()
        with pytest.raises(OSError, match="no"), atomic_write(tmp_path / "model") as temporary:
            temporary.mkdir()
        assert [each.name for each in tmp_path.iterdir()] == ["model"]

    def test_the_state_of_an_input_covers_nested_files_and_targets_of_links(self, tmp_path):
        case, stored = tmp_path / "case", tmp_path / "stored"
        for folder in (case / "masks" / "liver", stored):
            folder.mkdir(parents=True)
        for path in (case / "masks" / "liver" / "1.dcm", stored / "a", stored / "b"):
            path.write_bytes(b"12")
            os.utime(path, (1, 1))
        (case / "linked.nii").symlink_to(stored / "a")
        (case / "masks" / "around").symlink_to("..")
        before = input_state(case)
        assert [(name, size) for name, size, _, _ in before] == [
            ("/linked.nii", 2),
            ("/masks/liver/1.dcm", 2),
        ]
        # The same bytes elsewhere are the same input.
        shutil.copytree(case, tmp_path / "copy" / "case", symlinks=True)
        assert input_state(tmp_path / "copy" / "case") == before
        os.utime(case / "masks" / "liver" / "1.dcm", (2, 2))
        edited = input_state(case)
        assert edited != before
        # Same name, size and time, but another file.
        (case / "linked.nii").unlink()
        (case / "linked.nii").symlink_to(stored / "b")
        assert input_state(case) != edited
        assert input_state(tmp_path / "none") == [("", -1, -1, 0)]

    def test_json_is_sorted_and_readable(self, tmp_path):
        write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'


class TestTasks:
    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_survive_json(self, name):
        assert load_task(name) == PRESETS[name]
        assert task_from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]

    def test_own_task_takes_the_rest_from_its_base(self, tmp_path):
        path = tmp_path / "task.json"
        path.write_text(json.dumps({"base": "ct_liver", "patch_shape_zyx": [8, 64, 64]}))
        expected = attrs.evolve(
            PRESETS["ct_liver"], name="ct_liver_own", patch_shape_zyx=(8, 64, 64)
        )
        assert load_task(str(path)) == expected

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"class_names": ["one"]}, "two or more, all different"),
            ({"class_names": ["a", "a"]}, "two or more, all different"),
            ({"class_names": "ab"}, "a list of names"),
            ({"intensity_window": [1, 1]}, "low < high"),
            ({"intensity_window": ["a", 1]}, "two finite numbers"),
            ({"intensity_window": [1]}, "two finite numbers"),
            ({"intensity_window": 5}, "two finite numbers"),
            ({"image_dtype": "float32"}, "int16, uint16"),
            ({"outside_value": -70000}, "outside_value"),
            ({"outside_value": "air"}, "outside_value"),
            ({"resampling": "all"}, "keep, in_plane, full"),
            ({"resampling": "full"}, "three positive millimetres"),
            ({"resampling": "full", "spacing_mm": [1, 1, float("nan")]}, "positive millimetres"),
            ({"patch_shape_zyx": [8, 0, 8]}, "three positive voxel counts"),
            ({"patch_shape_zyx": [8, 1.5, 8]}, "three positive voxel counts"),
            ({"patches_per_case": 0}, "at least 1"),
            ({"patches_per_case": "many"}, "at least 1"),
            ({"patches_per_case": 2.5}, "at least 1"),
            ({"foreground_fraction": 1.5}, "from 0 to 1"),
            ({"foreground_fraction": None}, "from 0 to 1"),
            ({"patch_shape": [8, 8, 8]}, "Did you mean 'patch_shape_zyx'"),
            ({"base": "ct"}, "base among"),
            ({"label_classes": ["liver"]}, "pairs of a label's name and a class"),
            ({"label_classes": [["a", "background"], ["b", "spleen"]]}, "pairs of a label's name"),
            ({"label_classes": [["a", "background"], ["a", "liver"]]}, "labels all different"),
            ({"label_classes": [["a", "liver"], ["b", "background"]]}, "the background first"),
            ({"label_classes": []}, "pairs of a label's name and a class"),
        ],
    )
    def test_impossible_settings_are_named(self, changes, message):
        with pytest.raises(AHNetError, match=message):
            task_from_dict({"base": "ct_liver"} | changes)

    def test_several_labels_may_count_as_one_class(self):
        assert PRESETS["ct_liver"].label_names == PRESETS["ct_liver"].class_names
        assert PRESETS["ct_liver"].class_values == (0, 1, 2)
        pairs = [["nothing", "background"], ["cyst", "tumour"], ["liver", "liver"]]
        own = task_from_dict({"base": "ct_liver", "label_classes": pairs})
        assert own.label_names == ("nothing", "cyst", "liver")
        assert own.class_values == (0, 2, 1)
        assert task_from_dict(json.loads(json.dumps(own.to_dict()))) == own
        assert isinstance(hash(own), int)

    def test_missing_and_unreadable(self, tmp_path):
        with pytest.raises(AHNetError, match="'intensity_window'"):
            task_from_dict({"name": "t", "class_names": ["a", "b"]})
        with pytest.raises(AHNetError, match="Did you mean 'ct_liver'"):
            load_task("ct_livr")
        path = tmp_path / "task.json"
        for text in ("{", "[1]", '"ct_liver"'):
            path.write_text(text)
            with pytest.raises(AHNetError, match="JSON object"):
                load_task(str(path))

    def test_tasks_are_values(self):
        assert hash(PRESETS["ct_liver"]) == hash(Task(**attrs.asdict(PRESETS["ct_liver"])))
