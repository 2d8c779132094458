"""The page of scored label maps in a browser: drawing, clicks and keys."""

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as pictures

from ahnet_tf.evaluate import main
from preprocessing.page.contents import CLASS_COLOURS
from preprocessing.tasks import PRESETS
from tests.page_views import PICTURE, content_of, first_column, voxel_colour

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
LOW, HIGH = PRESETS["ct_liver"].intensity_window
# By how many voxels each case's prediction is off along x.
SHIFTS = {"volume-1": 1, "volume-2": 6, "volume-3": 3}


def ramp():
    """HU [x, y, z] that rise along every axis, so that each voxel tells where it is."""
    x, y, z = np.indices((40, 36, 20))
    return (-150 + 4 * x + 3 * y + 5 * z).astype(np.int16)


def labels(shift=0, tumour=True):
    label = np.zeros((40, 36, 20), np.uint8)
    label[10 + shift : 30 + shift, 8:28, 4:16] = 1
    if tumour:
        label[16 + shift : 22 + shift, 14:20, 8:12] = 2
    return label


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    for folder in ("cases", "predictions"):
        (root / folder).mkdir()
    for name, shift in SHIFTS.items():
        number = name.split("-")[1]
        for folder, file, voxels in (
            ("cases", f"volume-{number}", ramp()),
            ("cases", f"segmentation-{number}", labels(tumour=name != "volume-3")),
            ("predictions", f"segmentation-{number}", labels(shift, tumour=name != "volume-3")),
        ):
            nib.save(nib.Nifti1Image(voxels, AFFINE), root / folder / f"{file}.nii.gz")
    return root


@pytest.fixture(scope="module")
def page(folders):
    path = folders / "page.html"
    arguments = [str(folders / "predictions"), str(folders / "cases"), "--report", str(path)]
    assert main(arguments) == 0
    return path


@pytest.fixture
def opened(browser, page):
    browser.open(page)
    return browser


def is_grey(colour):
    return max(colour) - min(colour) <= 2


def grey_of(hu, low=LOW, high=HIGH):
    return np.clip((hu - low) / (high - low), 0, 1) * 255


def go_to_slice(browser, index):
    browser.slide("#stage .plane.main input", index)


def test_opens_without_requests_or_messages(opened, page, tmp_path):
    assert opened.complaints == []
    assert opened.requests == [page.as_uri()]
    opened.screenshot(tmp_path / "page.png")
    picture = pictures.imread(tmp_path / "page.png")
    assert picture[..., :3].std() > 0.2
    assert opened.run("document.querySelectorAll('#stage .plane').length") == 4
    assert "compressed" in opened.run("document.getElementById('case-note').textContent")


def test_worst_case_comes_first(opened):
    """The lower Dice decides: 0 of case 2's tumour, 5 / 6 of case 1's, 17 / 20 of case 3's liver."""
    options = (
        "Array.from(document.querySelectorAll('#case-choice option')).map((o) => o.textContent)"
    )
    assert opened.run(options) == ["volume-2", "volume-1", "volume-3"]
    assert first_column(opened, "table-cases") == ["volume-2", "volume-1", "volume-3"]
    assert opened.run("document.querySelector('tr.open td').textContent") == "volume-2"
    assert opened.run("document.querySelector('#case-facts span').textContent").startswith(
        "liver Dice 0.7"
    )


def test_voxels_are_drawn_where_they_are(opened, page):
    """Slices of the page show the HU of the file, in the window, at a true aspect ratio."""
    content = content_of(page)
    volume = content["cases"][content["order"][0]]["volume"]
    opened.slide("#prediction-opacity", 0)
    opened.slide("#reference-opacity", 0)
    hu = ramp()
    starts = [start for start, _ in volume["file_index"]][::-1]
    assert volume["spacing_mm"] == [2, 2, 4]
    for z in (0, 7, volume["shape"][0] - 1):
        go_to_slice(opened, z)
        for x, y in ((2, 3), (20, 9), (9, 25)):
            colour = voxel_colour(opened, volume, x, y)
            own = hu[tuple(int(i + s) for i, s in zip((x, y, z), starts, strict=True))]
            assert is_grey(colour)
            assert colour[0] == pytest.approx(grey_of(own), abs=4)
    size = opened.run(
        f"(({{width, height}}) => [width, height])(document.querySelector('{PICTURE}'))"
    )
    assert min(size) > 300


def test_window_sliders(opened, page):
    content = content_of(page)
    volume = content["cases"][content["order"][0]]["volume"]
    opened.slide("#prediction-opacity", 0)
    opened.slide("#reference-opacity", 0)
    go_to_slice(opened, 7)
    before = voxel_colour(opened, volume, 20, 9)
    opened.slide("#window-width", 100)
    opened.slide("#window-centre", 0)
    x, y, z = (int(i + s) for i, (s, _) in zip((20, 9, 7), volume["file_index"][::-1], strict=True))
    after = voxel_colour(opened, volume, 20, 9)
    assert after != before
    assert after[0] == pytest.approx(grey_of(ramp()[x, y, z], -50, 50), abs=12)
    opened.click("#window-presets button")
    assert opened.run("document.getElementById('window-width').value") == str(int(HIGH - LOW))
    assert voxel_colour(opened, volume, 20, 9) == before


def test_scrubbing_by_wheel_keys_slider_and_click(opened):
    where = f"Number(document.querySelector('{PICTURE}').dataset.index)"
    go_to_slice(opened, 5)
    assert opened.run(where) == 5
    opened.wheel(PICTURE, 2)
    opened.wait_for(f"{where} === 7")
    opened.run(f"document.querySelector('{PICTURE}').focus()")
    for key, expected in (("ArrowUp", 8), ("ArrowDown", 7), ("End", 19), ("Home", 0)):
        opened.key(key)
        assert opened.run(where) == expected
    caption = "document.querySelector('.plane.main figcaption').textContent"
    assert opened.run(caption) == "Axialslice 1 of 20"
    # A click on the axial plane moves the two others.
    others = (
        "Array.from(document.querySelectorAll('.plane:not(.main) canvas.picture[data-index]'))"
        ".map((canvas) => canvas.dataset.index)"
    )
    before = opened.run(others)
    opened.click(PICTURE, (0.4, 0.3))
    assert opened.run(others) != before
    assert opened.complaints == []


def test_opacities_and_classes(opened, page):
    content = content_of(page)
    volume = content["cases"][content["order"][0]]["volume"]
    starts = [int(start) for start, _ in volume["file_index"]][::-1]
    go_to_slice(opened, 10 - starts[2])
    # In the prediction alone: liver to the right of the reference, which ends at 30.
    place = 33 - starts[0], 11 - starts[1]
    opened.slide("#prediction-opacity", 100)
    blue = [int(CLASS_COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert voxel_colour(opened, volume, *place) == pytest.approx(blue, abs=3)
    opened.slide("#prediction-opacity", 50)
    half = voxel_colour(opened, volume, *place)
    opened.slide("#prediction-opacity", 0)
    none = voxel_colour(opened, volume, *place)
    assert is_grey(none)
    assert half == pytest.approx((np.array(none) + blue) / 2, abs=4)
    opened.slide("#prediction-opacity", 100)
    opened.click("#classes button")
    assert voxel_colour(opened, volume, *place) == none
    opened.click("#classes button")
    opened.click("#differences")
    red, _, blue = voxel_colour(opened, volume, *place)
    assert red > blue + 100


def test_tables_sort_by_a_click(opened):
    header = "#table-cases ~ .scroll th:nth-child({}) button"
    opened.click(header.format(2))
    assert first_column(opened, "table-cases") == ["volume-2", "volume-3", "volume-1"]
    opened.click(header.format(2))
    assert first_column(opened, "table-cases") == ["volume-1", "volume-3", "volume-2"]
    sort = "document.querySelector('#table-cases ~ .scroll th:nth-child(2)').ariaSort"
    assert opened.run(sort) == "descending"
    # Texts sort too, by number where they hold one, and by keyboard.
    opened.run(f"document.querySelector('{header.format(1)}').focus()")
    opened.key("Enter")
    assert first_column(opened, "table-cases") == ["volume-1", "volume-2", "volume-3"]


def test_tables_and_charts_open_cases(opened, page):
    names = [case["id"] for case in content_of(page)["cases"]]
    index = names.index("volume-1")
    opened.click("#table-cases ~ .scroll tbody tr:nth-child(2) button")
    opened.wait_for(f"document.body.dataset.open === '{index}'")
    assert opened.run("document.getElementById('case-choice').value") == str(index)
    opened.run("document.querySelector('.chart .point').focus()")
    first = opened.run("document.querySelector('.chart .point').getAttribute('aria-label')")
    opened.key("Enter")
    opened.wait_for(f"document.body.dataset.open === '{names.index(first.split(':')[0])}'")
    assert opened.run("document.querySelectorAll('.chart').length") == 6
    opened.slide("#case-choice", names.index("volume-2"))
    opened.wait_for(f"document.body.dataset.open === '{names.index('volume-2')}'")
    opened.run("document.activeElement.blur()")
    opened.key("]")
    opened.wait_for(f"document.body.dataset.open === '{index}'")
    assert opened.run("document.querySelectorAll('.chart .point.open').length") > 0
    assert opened.complaints == []


def test_hostile_names_are_texts(browser, tmp_path):
    name = "<img src=x onerror=alert(1)>&amp;'\"]]>--!"
    script = "</script><script>document.title='taken'<"
    voxels = labels()
    for each in (name, script.replace("/", "\u2215")):
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / f"{each}.nii.gz")
    files = sorted(map(str, tmp_path.glob("*.nii.gz")))
    page = tmp_path / "page.html"
    assert main(["--input", *files, "--reference", *files, "--report", str(page)]) == 0
    browser.open(page)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert name in first_column(browser, "table-cases")
    assert browser.run("document.title") == "Segmentation scores"
    assert browser.run("document.images.length") == 0
    # Without an image labels stand on black.
    assert "No image" in browser.run("document.getElementById('case-note').textContent")
    assert b"</script><script>document" not in page.read_bytes()


def test_images_from_elsewhere_and_those_that_do_not_fit(folders, tmp_path, capsys):
    references = tmp_path / "references"
    references.mkdir()
    for file in (folders / "cases").glob("segmentation-*"):
        (references / file.name).symlink_to(file)
    page = tmp_path / "page.html"
    arguments = [str(folders / "predictions"), str(references), "--report", str(page)]
    assert main([*arguments, "--images", str(folders / "cases"), "--report-cases", "2"]) == 0
    content = content_of(page)
    shown = [case for case in content["cases"] if "volume" in case]
    assert len(shown) == 2
    assert all("levels" in case["volume"] for case in shown)
    assert any("2 of the 3 cases" in note for note in content["notes"])
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2, 3):
        voxels = ramp()[: 39 if number == 2 else None]
        nib.save(nib.Nifti1Image(voxels, AFFINE), images / f"volume-{number}.nii.gz")
    assert main([*arguments, "--images", str(images)]) == 1
    errors = capsys.readouterr().err
    assert "volume-2.nii.gz" in errors
    assert "shape" in errors
    notes = {case["id"]: case["note"] for case in content_of(page)["cases"]}
    assert [("could not be used" in note) for note in notes.values()] == [False, True, False]


def test_options_are_checked_before_any_work(folders, tmp_path, capsys):
    arguments = [str(folders / "predictions"), str(folders / "cases")]
    assert main([*arguments, "--report", str(tmp_path)]) == 1
    assert "--report: expected a file" in capsys.readouterr().err
    assert main([*arguments, "--report", str(tmp_path / "a.html"), "--report-cases", "0"]) == 1
    assert "--report-cases" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
