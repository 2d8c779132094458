"""Goals and places of the detection benchmark."""

import numpy as np
import pytest

from ahnet_tf.evaluation.froc import ScoredVolume
from benchmarks.detection import _holds, _kind, _only, _sensitivities, _trained, goals_of
from preprocessing.datasets.detection_table import Detection
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.volumes.lesions import LesionBox


def test_a_detection_is_that_of_the_mass_if_its_middle_lies_in_the_masss_box():
    mass = np.zeros((40, 40, 20), bool)
    mass[10:20, 12:18, 5:9] = True
    assert _holds(Detection(0.9, 5, 5, 5, 20, 20, 4), mass)
    assert not _holds(Detection(0.9, 25, 5, 5, 20, 20, 4), mass)
    assert not _holds(Detection(0.9, 5, 5, 12, 20, 20, 4), mass)


def test_sensitivity_of_one_kind_counts_every_false_positive_and_no_other_mass():
    large = LesionBox(0, 0, 20, 11, 5, 10, "cancer")  # 12.4 mm of 0.8 mm pixels
    small = LesionBox(0, 0, 15, 14, 5, 10, "cancer")  # 11.6 mm
    kinds = [_kind(box, 0.8) for box in (large, small)]
    assert kinds == ["spiculated, at least 12 mm", "spiculated, below 12 mm"]
    # In falling order: the large mass, air, the small mass, air.
    volume = ScoredVolume(2, np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, -1, 1, -1]))
    found = {kind: _sensitivities([_only(kind, volume, kinds)]) for kind in kinds}
    assert [found[kind]["masses"] for kind in kinds] == [1, 1]
    # The small one is found after one false positive; points are joined by straight lines.
    assert [found[kind]["at_0.5"] for kind in kinds] == [1.0, 0.5]
    assert [found[kind]["at_2"] for kind in kinds] == [1.0, 1.0]


def test_goals_follow_the_figures():
    froc = {"at_0.25": 0.5, "at_1": 0.81, "at_2": 0.89}
    figures = {"training": {"cpu_minutes": 39.0}, "froc": {"all": froc}, "hit_over_mass": 1.4}
    holds = [each["holds"] for each in goals_of(figures)]
    assert holds == [True, True, False, True, True]
    victre = {"rank_of_mass": 1, "score_of_mass": 0.4, "highest_without": 0.5}
    holds = [each["holds"] for each in goals_of({**figures, "victre": victre})]
    assert holds[-2:] == [True, False]


def test_a_folder_of_other_settings_is_refused(tmp_path):
    write_json(tmp_path / "settings.json", {"cases": 5})
    write_json(tmp_path / "training.json", {"cpu_minutes": 1.0})
    with pytest.raises(SettingsError, match="--work"):
        _trained(tmp_path, cases=6, seed=0)
