"""Output to addresses that are not local folders: a small object store with Beam's interface."""

import os
from pathlib import Path

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem

from preprocessing.convert import main
from preprocessing.errors import SettingsError
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases
from preprocessing.records import storage


class Shelf(LocalFileSystem):
    """An object store `shelf://KEY`: knows files only, and can't rename or delete a folder."""

    root = None

    @classmethod
    def scheme(cls):
        return "shelf"

    def _real(self, address):
        path = self.root / address.removeprefix("shelf://")
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def _file(self, address):
        if Path(self._real(address)).is_dir():
            raise BeamIOError(f"{address} is no object")
        return self._real(address)

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        pass

    def _list(self, dir_or_prefix):
        for path in self.root.rglob("*"):
            key = f"shelf://{path.relative_to(self.root)}"
            if path.is_file() and key.startswith(dir_or_prefix):
                yield FileMetadata(key, path.stat().st_size, path.stat().st_mtime)

    def create(self, path, *arguments, **options):
        return super().create(self._file(path), *arguments, **options)

    def open(self, path, *arguments, **options):
        return super().open(self._file(path), *arguments, **options)

    def exists(self, path):
        return Path(self._real(path)).is_file()

    def rename(self, source_file_names, destination_file_names):
        sources, targets = (
            [self._file(name) for name in names]
            for names in (source_file_names, destination_file_names)
        )
        super().rename(sources, targets)

    def delete(self, paths):
        super().delete([self._file(path) for path in paths])


@pytest.fixture
def shelf(tmp_path):
    Shelf.root = tmp_path / "shelf"
    Shelf.root.mkdir()
    return Shelf.root


@pytest.fixture(params=["local", "shelf"])
def place(request, tmp_path, shelf):
    return str(tmp_path / "local") if request.param == "local" else "shelf://bucket"


def test_folders_are_listed_replaced_and_deleted(place):
    old, new = FileSystems.join(place, "old"), FileSystems.join(place, "new")
    assert storage.list_files(old) == []
    for folder, names in ((old, ["gone", "a/b"]), (new, ["a/b", "last", "z/y"])):
        for name in names:
            storage.make_folder(FileSystems.split(FileSystems.join(folder, name))[0])
            storage.write_json(FileSystems.join(folder, name), {"in": folder})
    assert storage.list_files(old) == ["a/b", "gone"]
    storage.replace_folder(new, old, last="last")
    assert storage.list_files(old) == ["a/b", "last", "z/y"]
    assert storage.list_files(new) == []
    assert storage.read_json(FileSystems.join(old, "a/b")) == {"in": new}
    storage.delete_folder(old)
    storage.delete_folder(old)
    assert storage.list_files(place) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_on_every_local_disk(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr("preprocessing.files._exchanged", lambda *paths: False)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    for folder in (old, new):
        storage.make_folder(folder)
        storage.write_json(f"{folder}/a", {"in": folder})
    storage.replace_folder(new, old, last="a")
    assert storage.read_json(f"{old}/a") == {"in": new}
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_a_killed_run_moved_aside_is_put_back(tmp_path):
    aside, target = tmp_path / ".out.replaced", tmp_path / "out"
    for content in ("old", "older"):
        aside.mkdir()
        (aside / content).write_text("")
        storage.put_back_replaced(str(target))
    # The second one is what a later run has left of what it replaced.
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in aside.iterdir()] == ["older"]


def test_hidden_folders_lie_beside_their_folder():
    assert storage.hidden_beside("/data/out", "partial") == "/data/.out.partial"
    assert storage.hidden_beside("out", "partial") == os.path.abspath(".out.partial")
    assert storage.hidden_beside("shelf://bucket/out", "partial") == "shelf://bucket/.out.partial"


def test_a_file_system_without_its_package_is_named():
    with pytest.raises(SettingsError, match=r"none for nfs3://.*pip install 'apache-beam") as error:
        storage.hidden_beside("nfs3://bucket/out", "partial")
    assert error.value.where == "nfs3://bucket/out"


def test_the_job_gives_the_same_records_on_an_object_store(shelf, tmp_path):
    write_cases(tmp_path / "data", 2, 0, settings=PhantomSettings((32, 32, 8), (10.0, 10.0, 20.0)))
    command = ["--input", str(tmp_path / "data"), "--patch-shape", "8", "16", "16"]
    for output in (str(tmp_path / "out"), "shelf://bucket/out", "shelf://bucket/out"):
        assert main([*command, "--output", output, "--overwrite"]) == 0
    local, remote = tmp_path / "out", shelf / "bucket" / "out"
    names = sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
    assert [name for name in names if name.startswith("eval/")]
    found = sorted(path for path in shelf.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(remote)) for path in found) == names
    for name in names:
        assert (local / name).read_bytes() == (remote / name).read_bytes()
