"""The classes that label values and names of a data set mean."""

import attrs
import pytest

from preprocessing.datasets.label_names import is_organ_with_lesions, mask_classes, value_classes
from preprocessing.errors import InputError
from preprocessing.tasks import PRESETS

CT = PRESETS["ct_liver"]


def task_of(*names, classes=None):
    return attrs.evolve(CT, class_names=names, label_classes=classes)


def values_of(task, *names):
    return value_classes(list(enumerate(names)), task, "set")


def masks_of(task, *names, loose=False):
    return mask_classes(names, task, "set", "a mask", ", ".join(names), loose=loose)


def test_values_without_names_are_the_tasks():
    assert value_classes((), CT, "set") == {0: 0, 1: 1, 2: 2}
    merged = (("background", "background"), ("tumour", "liver"), ("liver", "liver"))
    assert value_classes((), task_of("background", "liver", classes=merged), "set") == {
        **{0: 0, 1: 1, 2: 1}
    }


@pytest.mark.parametrize("name", ["tumour", " Tumor", "CANCER", "liver tumour", "Liver_Lesions"])
def test_swapped_values_and_synonyms(name):
    assert values_of(CT, "Background", name, "Liver ") == {0: 0, 1: 2, 2: 1}
    assert value_classes([(0, "clear label"), (7, name), (3, "LIVER")], CT, "set") == {
        **{0: 0, 7: 2, 3: 1}
    }


def test_exact_names_come_before_synonyms():
    task = task_of("background", "lesion", "tumour")
    assert values_of(task, "background", "tumour", "lesion") == {0: 0, 1: 2, 2: 1}
    with pytest.raises(InputError, match="one class each, found one for lesion and tumour"):
        values_of(task, "background", "cancer", "lesion")


def test_digits_tell_names_apart():
    task = task_of("background", "vertebrae_L1", "vertebrae_L2", "1_2", "12")
    named = [(0, "background"), (5, "vertebrae L2"), (6, "Vertebrae_L1"), (7, "12"), (8, "1-2")]
    assert value_classes(named, task, "set") == {0: 0, 5: 2, 6: 1, 7: 4, 8: 3}
    masks = ("vertebrae_L1", "vertebrae_L2", "vertebrae_L3", "1_2", "12", "2")
    assert masks_of(task, *masks) == {"vertebrae_L1": 1, "vertebrae_L2": 2, "1_2": 3, "12": 4}


def test_names_that_differ_in_digits_are_never_one_class():
    segment = task_of("background", "segment")
    with pytest.raises(InputError, match=r"task \(background, segment\), found .* 1 segment1, 2"):
        values_of(segment, "background", "segment1", "segment2")
    with pytest.raises(InputError, match=r"one name of a mask for segment.*label_classes"):
        masks_of(segment, "segment", "segment2")
    with pytest.raises(InputError, match="one name of a mask for tumour"):
        masks_of(CT, "liver", "tumor 1", "tumor 2")
    own = (("background", "background"), ("segment1", "segment"), ("segment2", "segment"))
    task = task_of("background", "segment", classes=own)
    assert values_of(task, "background", "segment1", "segment2") == {0: 0, 1: 1, 2: 1}
    assert masks_of(task, "segment1", "segment2", "other") == {"segment1": 1, "segment2": 1}


def test_two_names_of_one_class():
    with pytest.raises(InputError, match=r"one name for tumour, found tumor and cancer\. Give"):
        values_of(CT, "background", "liver", "tumor", "cancer")
    with pytest.raises(InputError, match="one name of a mask for tumour"):
        masks_of(CT, "liver", "tumor", "lesion")


def test_background_and_ignore():
    assert value_classes([(1, "liver"), (2, "tumor")], CT, "set") == {0: 0, 1: 1, 2: 2}
    assert value_classes([(1, "liver"), (2, "tumor"), (3, "bg")], CT, "set") == {1: 1, 2: 2, 3: 0}
    assert values_of(CT, "background", "liver", "tumor", "ignore") == {0: 0, 1: 1, 2: 2, 3: None}
    own = (("background", "background"), ("liver", "liver"), ("ignore", "background"))
    task = task_of("background", "liver", classes=own)
    assert values_of(task, "background", "liver", "Ignore") == {0: 0, 1: 1, 2: 0}


def test_masks_of_3d_ircadb_drop_digits():
    names = ("bone", "liver", "livertumor01", "livertumor02", "venacava")
    assert masks_of(CT, *names, loose=True) == {
        **{"liver": 1, "livertumor01": 2, "livertumor02": 2}
    }
    with pytest.raises(InputError, match="a mask for tumour, found liver, venacava"):
        masks_of(CT, "liver", "venacava", loose=True)


def test_order_of_masks_that_overlap():
    assert list(masks_of(CT, "tumor", "liver")) == ["liver", "tumor"]
    # What counts as background is cut out of the rest.
    own = (("background", "background"), ("vessel", "background"), ("liver", "liver"))
    task = task_of("background", "liver", classes=own)
    assert list(masks_of(task, "liver", "vessel").items()) == [("liver", 1), ("vessel", 0)]


def test_organs_with_lesions():
    assert is_organ_with_lesions(CT)
    assert is_organ_with_lesions(task_of("background", "kidney", "Cancer"))
    assert is_organ_with_lesions(task_of("background", "pancreas", "pancreatic tumour"))
    assert is_organ_with_lesions(task_of("background", "liver", "liver_lesions"))
    for names in (("background", "liver"), ("background", "tumour", "liver")):
        assert not is_organ_with_lesions(task_of(*names))
    assert not is_organ_with_lesions(PRESETS["dbt_lesion"])
