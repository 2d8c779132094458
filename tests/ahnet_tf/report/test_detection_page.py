"""The page of scored detections: boxes on slices and on the projection, thresholds, curves."""

import csv

import numpy as np
import pytest

from ahnet_tf.evaluate import main
from ahnet_tf.evaluation.froc import ScoredVolume
from ahnet_tf.report.charts import precision_recall
from preprocessing.datasets.bcs_dbt import dbt_case_id
from preprocessing.datasets.detection_table import DETECTION_COLUMNS
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings
from tests.page_views import content_of, first_column, voxel_colour

PROJECTION = "#stage .plane:nth-child(2) canvas.picture"
X, Y, WIDTH, HEIGHT, DEPTH = 4, 4, 12, 10, 2


def far_from(boxes):
    """A first slice that is more than a quarter of the slices away from all boxes of a volume."""
    if not boxes:
        return 0
    slices = int(boxes[0]["VolumeSlices"])
    distances = {
        z: min(abs(z + DEPTH / 2 - int(box["Slice"])) for box in boxes) for z in (0, slices - DEPTH)
    }
    z = max(distances, key=distances.get)
    assert distances[z] > slices / 4
    return z


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Phantoms with a detection on each but the first box, and a false alarm in a corner of each volume."""
    root = tmp_path_factory.mktemp("detected")
    settings = DBTSettings(shape_xyz=(80, 96, 18), spacing_mm=(1.0, 1.0, 2.0))
    write_cases(root / "breasts", 4, 0, settings=settings)
    rows = []
    with open(root / "breasts" / "boxes.csv", newline="") as file:
        boxes = list(csv.DictReader(file))
    with open(root / "breasts" / "labels.csv", newline="") as file:
        volumes = list(csv.DictReader(file))
    for number, box in enumerate(boxes[1:]):
        z = int(box["Slice"]) - 1
        rows.append(
            [box, 0.9 - 0.1 * number, z, box["X"], box["Y"], 3, box["Width"], box["Height"]]
        )
    for volume in volumes:
        own = [box for box in boxes if box["PatientID"] == volume["PatientID"]]
        rows.append([volume, 0.4, far_from(own), X, Y, DEPTH, WIDTH, HEIGHT])
    with open(root / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(DETECTION_COLUMNS)
        for volume, *numbers in rows:
            key = [volume[name] for name in ("PatientID", "StudyUID", "View")]
            writer.writerow([*key, *numbers])
    return root, boxes, volumes


@pytest.fixture(scope="module")
def page(folders):
    root, _, _ = folders
    path = root / "page.html"
    arguments = [str(root / "predictions.csv"), str(root / "breasts"), "--report", str(path)]
    assert main(arguments) == 0
    return path


def is_orange(colour):
    """Near #D55E00, not the grey of tissue nor the black of air."""
    return colour[0] > 150 and colour[0] > colour[2] + 100


def edge_colours(browser, volume, box, selector):
    """Colours along the left and right edges of a box on a plane across z, in voxels of the page."""
    low, high = box["low"], box["high"]
    return [
        voxel_colour(browser, volume, x, y, selector)
        for x in (low[2], high[2])
        for y in np.linspace(low[1] + 1, high[1] - 1, 30)
    ]


@pytest.mark.slow
def test_boxes_are_drawn_where_they_are(browser, page):
    browser.open(page)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    content = content_of(page)
    index = int(browser.run("document.body.dataset.open"))
    volume = content["cases"][index]["volume"]
    (false_alarm,) = (box for box in volume["boxes"] if box["kind"] == "false positive")
    assert false_alarm["text"] == "0.4"

    def drawn(selector="#stage .plane.main canvas.picture"):
        return sum(map(is_orange, edge_colours(browser, volume, false_alarm, selector)))

    inside = int(np.mean([false_alarm["low"][0], false_alarm["high"][0]]))
    browser.slide("#stage .plane.main input", inside)
    assert drawn() > 10
    browser.slide("#stage .plane.main input", abs(inside - 8))
    assert drawn() == 0
    # The projection has every box, whatever the slice.
    assert drawn(PROJECTION) > 10
    browser.slide("#score-threshold", 1000)
    assert drawn(PROJECTION) == 0
    assert browser.run("document.querySelector('.plane:nth-child(2) figcaption').textContent") == (
        "Axial projectionmaximum of all slices"
    )
    browser.slide("#projection-kind", "mean")
    assert "mean" in browser.run("document.querySelector('.plane:nth-child(2)').textContent")
    assert browser.complaints == []


def test_worst_volume_and_jumps(browser, page, folders):
    """The first box has no detection: its volume comes first. A jump goes to a box's slice."""
    _, boxes, volumes = folders
    browser.open(page)
    keys = [
        [row[name] for name in ("PatientID", "StudyUID", "View")] for row in (boxes[0], *volumes)
    ]
    worst = dbt_case_id(*keys[0])
    assert first_column(browser, "table-volumes-scored")[0] == worst
    assert browser.run("document.querySelector('#case-choice option').textContent") == worst
    browser.click("#box-jumps button")
    caption = browser.run("document.querySelector('.plane.main figcaption').textContent")
    assert caption == f"Axialslice {int(boxes[0]['Slice']) + 1} of {boxes[0]['VolumeSlices']}"
    assert browser.run("document.querySelectorAll('.chart').length") == 3
    # Nothing of whose volumes these are.
    text = page.read_text(encoding="utf-8")
    assert "PHANTOM" not in text
    assert [case["id"] for case in content_of(page)["cases"]] == [
        dbt_case_id(*key) for key in keys[1:]
    ]


def test_tables_without_volumes(folders, tmp_path, browser, capsys):
    root, _, _ = folders
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("boxes.csv", "labels.csv"):
        (tables / name).symlink_to(root / "breasts" / name)
    page = tmp_path / "page.html"
    arguments = [str(root / "predictions.csv"), str(tables), "--report", str(page)]
    assert main(arguments) == 0
    browser.open(page)
    assert browser.run("document.getElementById('viewer').hidden")
    assert "No image of any volume" in browser.run("document.getElementById('notes').textContent")
    assert browser.complaints == []
    assert main([*arguments, "--images", str(root / "breasts")]) == 0
    assert sum("volume" in case for case in content_of(page)["cases"]) == 4
    assert main([*arguments, "--images", str(tables)]) == 1
    assert "expected volumes that the reference tables name" in capsys.readouterr().err


def test_precision_and_recall():
    """Falling scores: a hit, a false positive, a hit on the second of two boxes, a false positive."""
    volume = ScoredVolume(2, np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, -1, 1, -1]))
    assert precision_recall([volume]) == [(1 / 2, 1), (1, 2 / 3), (1, 2 / 4)]
    nothing = ScoredVolume(2, np.empty(0), np.empty(0, np.int64))
    assert precision_recall([nothing]) == []
