"""The page of a data set before training: sound, doubtful and unreadable cases; its size."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from preprocessing.page.contents import page_content, without_folders
from preprocessing.page.volumes import page_volume
from preprocessing.page.writer import budget_bytes, write_page
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.tasks import PRESETS
from preprocessing.verify import main
from preprocessing.volumes.geometry import Volume
from tests.page_views import PICTURE, content_of, first_column

SETTINGS = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(5.0, 5.0, 12.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Case 0 is sound, 1 has a label map of another affine, 2 is no image at all."""
    folder = tmp_path_factory.mktemp("data")
    for number in (0, 1):
        image, label = make_case(0, number, SETTINGS)
        affine = image.affine.copy()
        affine[2, 3] += 30 * number
        nib.save(nib.Nifti1Image(image.voxels, image.affine), folder / f"volume-{number}.nii.gz")
        nib.save(nib.Nifti1Image(label.voxels, affine), folder / f"segmentation-{number}.nii.gz")
    (folder / "volume-2.nii.gz").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    # Two cases are errors.
    assert main([str(data), "--report", str(path)]) == 1
    return path


def test_findings_and_volumes(browser, page, data):
    browser.open(page)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert first_column(browser, "table-findings")[:2] == ["volume-2", "volume-2"]
    assert first_column(browser, "table-cases") == ["volume-2", "volume-1", "volume-0"]
    content = content_of(page)
    cases = {case["id"]: case for case in content["cases"]}
    assert "volume" not in cases["volume-2"]
    assert "Without its label map" in cases["volume-1"]["note"]
    # What can be looked at: the doubtful case first, then the sound one.
    options = (
        "Array.from(document.querySelectorAll('#case-choice option')).map((o) => o.textContent)"
    )
    assert browser.run(options) == ["volume-1", "volume-0"]
    texts = browser.run("document.querySelector('#table-findings ~ .scroll').textContent")
    assert "corners up to 30 mm apart" in texts
    # The page may travel: files are named, folders are not.
    assert str(data) not in page.read_text(encoding="utf-8")


def test_label_maps_are_outlines(browser, page):
    browser.open(page)
    names = [case["id"] for case in content_of(page)["cases"]]
    browser.slide("#case-choice", names.index("volume-0"))
    browser.wait_for(f"document.body.dataset.open === '{names.index('volume-0')}'")
    coloured = (
        f"(() => {{ const canvas = document.querySelector('{PICTURE}');"
        "const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        "let count = 0; for (let i = 0; i < data.length; i += 4)"
        "  count += Math.max(data[i], data[i + 2]) - Math.min(data[i], data[i + 2]) > 60;"
        "return count; })()"
    )
    assert browser.run(coloured) > 200
    browser.slide("#reference-opacity", 0)
    assert browser.run(coloured) == 0
    assert browser.run("document.getElementById('prediction-control').hidden")
    assert browser.run("document.getElementById('box-controls').hidden")
    assert browser.run("document.querySelectorAll('.chart').length") == 4


def test_boxes_of_tomosynthesis(tmp_path, browser):
    settings = DBTSettings(shape_xyz=(64, 80, 14), spacing_mm=(1.0, 1.0, 2.0))
    write_cases(tmp_path / "breasts", 2, 0, settings=settings)
    page = tmp_path / "page.html"
    main([str(tmp_path / "breasts"), "--task", "dbt_lesion", "--report", str(page)])
    content = content_of(page)
    boxes = [box for case in content["cases"] for box in case["volume"]["boxes"]]
    assert [box["kind"] for box in boxes] == ["reference"] * len(boxes)
    assert len(boxes) == len((tmp_path / "breasts" / "boxes.csv").read_text().splitlines()) - 1 > 0
    browser.open(page)
    assert browser.complaints == []
    assert browser.run("document.getElementById('score-control').hidden")
    caption = browser.run("document.querySelector('.plane:nth-child(2) figcaption').textContent")
    assert caption == "Axial projectionmaximum of all slices"
    assert "PHANTOM" not in page.read_text(encoding="utf-8")


def test_existing_page_needs_overwrite(data, page, tmp_path, capsys):
    # The other tests share the page.
    page = shutil.copy(page, tmp_path / "page.html")
    before = page.read_bytes()
    assert main([str(data), "--report", str(page)]) == 1
    assert "Give --overwrite" in capsys.readouterr().err
    assert page.read_bytes() == before
    assert main([str(data), "--report", str(page), "--overwrite", "--report-cases", "1"]) == 1
    content = content_of(page)
    assert sum("volume" in case for case in content["cases"]) == 1
    assert any("Volumes of 1 of the 3 cases" in note for note in content["notes"])
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_no_file_after_an_error(tmp_path):
    def volume_of(index, budget):
        if index == 1:
            raise MemoryError
        return None, ""

    cases = [{"id": name, "facts": []} for name in "ab"]
    content = page_content(PRESETS["ct_liver"], "", cases, [0, 1])
    with pytest.raises(MemoryError):
        write_page(tmp_path / "page.html", "a page", content, [0, 1], volume_of)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "real"])
def test_twenty_cases_stay_below_20_mb(kind, tmp_path, browser, request):
    """Noise is the worst that a volume can be; a real CT has 31 million voxels."""
    task = PRESETS["ct_liver"]
    if kind == "real":
        from preprocessing.volumes.nifti import read_image, read_label

        folder = request.getfixturevalue("real_data") / "ircadb01_case17"
        image = read_image(folder / "ct.nii.gz")
        label = read_label(folder / "label.nii.gz", task.class_names)
    else:
        random = np.random.default_rng(0)
        voxels = random.integers(-1000, 1000, (160, 160, 60)).astype(np.int16)
        image = Volume(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
        label = Volume(random.integers(0, 3, voxels.shape).astype(np.uint8), image.affine)
    page = tmp_path / "page.html"
    volume = page_volume(image, label, label, task, budget_bytes=budget_bytes(20))
    cases = [{"id": f"case-{number}", "facts": []} for number in range(20)]
    content = page_content(task, "", cases, range(20))
    write_page(page, "twenty", content, range(20), lambda index, budget: (volume, ""))
    assert page.stat().st_size < 20_000_000
    browser.open(page)
    assert browser.complaints == []
    # Nothing that one sees is lost: a few HU within the window.
    if kind == "real":
        error = float(volume.note.split("compressed: ")[1].split(" off")[0])
        assert error < 15
        assert max(volume.facts["spacing_mm"]) < 2.5
        assert page.stat().st_size > 12_000_000


def test_files_are_named_without_folders():
    text = (
        "/data/a b/../lits/volume-1.nii.gz: expected 2/3 'of /x/y.nii', found ~/z/boxes.csv, row 2"
    )
    assert without_folders(text) == (
        "a b/../lits/volume-1.nii.gz: expected 2/3 'of y.nii', found boxes.csv, row 2"
    )
    assert without_folders("1 mm/voxel, 3 of 4") == "1 mm/voxel, 3 of 4"


def test_contents_are_plain_json(page):
    assert json.loads(json.dumps(content_of(page)))["task"]["classes"][1] == "liver"
