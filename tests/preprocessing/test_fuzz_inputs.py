"""Random data sets of every layout: sound ones are used, and no file of a damaged one is lost."""

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.fuzz_inputs import check
from benchmarks.random_data_sets import DATA_SETS, LAYOUTS, Damage, DataSet

# Files in use of two cases: images with labels and without, label maps once. Series have six slices,
# 3D-IRCADb two structures, TotalSegmentator three organs, lits_folders two test images.
USED = dict.fromkeys(LAYOUTS, 6) | {
    "lits_folders": 6 + 2,
    "nnunet_v2": 6 + 6,
    "ircadb": 24 + 24,
    "totalsegmentator": 4 + 6,
    "dicom_tree": 24 + 2,
    "seg": 24 + 2,
    "bcs_dbt": 4,
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_sound_data_sets_are_used(layout):
    counts = check(DataSet(layout, cases=2, seed=0))
    assert (counts["used"], counts["refused"]) == (USED[layout], 0)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(DATA_SETS)
def test_every_file_is_used_passed_over_or_refused(data):
    check(data)


# Found by runs of `benchmarks.fuzz_inputs`: a label map whose image lies among slices, and masks whose
# image is named like one of them.
@pytest.mark.parametrize(
    "data",
    [
        DataSet(
            "seg", 3, 0, [Damage(39, "copy", "liver.nii.gz"), Damage(21, "rename", "liver.nii.gz")]
        ),
        DataSet("totalsegmentator", 2, 0, [Damage(0, "rename", "liver.nii.gz")]),
    ],
    ids=lambda data: data.layout,
)
def test_files_beside_a_misnamed_one_are_named(data):
    check(data)
