"""Goals and places of the detection benchmark."""

import numpy as np
import pytest

from benchmarks.detection import _holds, _trained, goals_of
from preprocessing.datasets.detection_table import Detection
from preprocessing.errors import SettingsError
from preprocessing.files import write_json


def test_a_detection_is_that_of_the_mass_if_its_middle_lies_in_the_masss_box():
    mass = np.zeros((40, 40, 20), bool)
    mass[10:20, 12:18, 5:9] = True
    assert _holds(Detection(0.9, 5, 5, 5, 20, 20, 4), mass)
    assert not _holds(Detection(0.9, 25, 5, 5, 20, 20, 4), mass)
    assert not _holds(Detection(0.9, 5, 5, 12, 20, 20, 4), mass)


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
