"""CT series: order, Hounsfield units, geometry, and irregular slices."""

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from preprocessing.cli import parse_allowances
from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.series import ReadOptions
from preprocessing.errors import ALLOWANCES, InputError, SettingsError

STORED = np.random.default_rng(0).integers(0, 4000, (6, 9, 7)).astype(np.uint16)
HU = STORED.transpose(2, 1, 0).astype(np.int16) - 1024


def refusal(path, allow=()):
    with pytest.raises(InputError) as caught:
        read_dicom(path, ReadOptions(allow=allow))
    return str(caught.value)


def test_slices_are_sorted_by_position_and_rescaled(tmp_path, dicom):
    volume = read_dicom(dicom.ct_series(tmp_path, STORED))
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, HU)
    # By hand: PixelSpacing is (rows, columns) = (0.8, 0.7); left and posterior become right and
    # anterior; the claimed SliceThickness of 99 mm means nothing.
    expected = [[-0.7, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, 40], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)


@pytest.mark.parametrize("direction", [1, -1])
def test_order_of_acquisition_does_not_matter(tmp_path, dicom, direction):
    dicom.ct_series(tmp_path, STORED[::direction], origin=(0, 0, 0), step=(0, 0, direction * 2.5))
    volume = read_dicom(tmp_path)
    assert np.array_equal(volume.voxels, HU)
    assert volume.affine[2, 2] == 2.5


def test_oblique_slices_keep_the_position_of_every_voxel(tmp_path, dicom):
    # Rotations about x and z by chosen angles; each voxel's position by DICOM's own equation.
    a, b = np.radians(20), np.radians(35)
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    row, column, normal = (np.array(about_z) @ np.array(about_x)).T
    origin = np.array([-31.0, 17.0, -250.0])
    dicom.ct_series(
        *(tmp_path, STORED),
        origin=origin,
        step=1.25 * normal,
        ImageOrientationPatient=[f"{v:.10f}" for v in (*row, *column)],
    )
    volume = read_dicom(tmp_path)
    for x, y, z in [(0, 0, 0), (6, 0, 0), (0, 8, 0), (0, 0, 5), (3, 4, 2)]:
        assert volume.voxels[x, y, z] == int(STORED[z, y, x]) - 1024
        left, posterior, superior = origin + 0.7 * x * row + 0.8 * y * column + 1.25 * z * normal
        place = volume.affine @ [x, y, z, 1]
        np.testing.assert_allclose(place[:3], [-left, -posterior, superior], atol=1e-3)


def test_each_slice_has_its_own_scaling(tmp_path, dicom):
    for z, (slope, intercept) in enumerate([(1, -1000), (2, 50)]):
        values = np.full((2, 2), 100 + z, np.uint16)
        one = dicom.ct_slice(values, (0, 0, z), RescaleSlope=slope, RescaleIntercept=intercept)
        dicom.save(one, tmp_path / str(z))
    assert read_dicom(tmp_path).voxels[0, 0].tolist() == [-900, 252]


def test_large_values_widen_the_dtype(tmp_path, dicom):
    large = STORED.copy()
    large[3, 0, 0] = 60000
    dicom.ct_series(tmp_path / "a", large)
    volume = read_dicom(tmp_path / "a")
    assert volume.voxels.dtype == np.int32
    assert np.array_equal(volume.voxels, large.transpose(2, 1, 0).astype(int) - 1024)
    dicom.ct_series(tmp_path / "b", STORED, RescaleSlope=0.5)
    volume = read_dicom(tmp_path / "b")
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels, STORED.transpose(2, 1, 0) * np.float32(0.5) - 1024)


def test_signed_pixels_of_twelve_bits(tmp_path, dicom):
    values = np.array([[-2048, -1], [0, 2047]], np.int16)
    # The four bits above BitsStored do not belong to the pixel.
    dirty = ((values & 0x0FFF) | 0x5000).astype(np.int16)
    one = dicom.ct_slice(dirty, (0, 0, 0), BitsStored=12, RescaleIntercept=0)
    volume = read_dicom(dicom.save(one, tmp_path / "a.dcm"))
    assert np.array_equal(volume.voxels[:, :, 0], values.T)


@pytest.mark.parametrize("padding", [63536, -2000])
def test_padding_is_air_with_either_sign(tmp_path, dicom, padding):
    values = np.array([[-2000, 7], [40, 90]], np.int16)
    one = dicom.ct_slice(values, (0, 0, 0), RescaleIntercept=0)
    one.add_new("PixelPaddingValue", "US" if padding > 0 else "SS", padding)
    volume = read_dicom(dicom.save(one, tmp_path / "a.dcm"))
    assert volume.voxels[:, :, 0].T.tolist() == [[-1024, 7], [40, 90]]


def test_padding_that_could_be_tissue_is_kept(tmp_path, dicom):
    values = np.array([[0, 7], [40, 90]], np.int16)
    one = dicom.ct_slice(values, (0, 0, 0), RescaleIntercept=0, PixelPaddingValue=0)
    assert read_dicom(dicom.save(one, tmp_path / "a.dcm")).voxels[0, 0, 0] == 0


def test_gantry_tilt(tmp_path, dicom):
    # 15 degrees: each slice 2.5 mm along z slips by 2.5 tan 15 along y.
    slip = 2.5 * np.tan(np.radians(15))
    dicom.ct_series(tmp_path, STORED, step=(0, slip, 2.5))
    with pytest.raises(InputError, match=r"a gantry tilt of 15\.0 degrees.*--allow gantry_tilt"):
        read_dicom(tmp_path)
    volume = read_dicom(tmp_path, ReadOptions(allow=["gantry_tilt"]))
    assert np.array_equal(volume.voxels, HU)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, -slip, 2.5], atol=1e-5)


def test_gaps(tmp_path, dicom):
    dicom.ct_series(tmp_path, STORED)
    for path in tmp_path.iterdir():
        if b"47.5" in path.read_bytes():  # the slice at 40 + 3 * 2.5
            path.unlink()
    with pytest.raises(
        InputError, match=r"2\.5 to 5 mm .*about 1 slices are missing.*--allow gaps"
    ):
        read_dicom(tmp_path)
    volume = read_dicom(tmp_path, ReadOptions(allow=["gaps"]))
    assert np.array_equal(volume.voxels, HU[:, :, [0, 1, 2, 4, 5]])
    assert volume.affine[2, 2] == pytest.approx(12.5 / 4)


def test_positions_rounded_to_a_tenth_are_even(tmp_path, dicom):
    for z, values in enumerate(STORED):
        one = dicom.ct_slice(values, (0, 0, round(0.625 * z, 1)))
        dicom.save(one, tmp_path / f"{z}.dcm")
    assert read_dicom(tmp_path).affine[2, 2] == pytest.approx(0.625, rel=0.05)


@pytest.mark.parametrize("same", [True, False])
def test_duplicate_slices(tmp_path, dicom, same):
    dicom.ct_series(tmp_path, STORED)
    twin = STORED[2] if same else STORED[2] + 1
    one = dicom.ct_slice(twin, (-20, -30, 45), InstanceNumber=99)
    dicom.save(one, tmp_path / "A_first_by_name.dcm")
    with pytest.raises(
        InputError, match=r"1 too many, the first at 45 mm.*--allow duplicate_slices"
    ):
        read_dicom(tmp_path)
    assert np.array_equal(read_dicom(tmp_path, ReadOptions(allow=["duplicate_slices"])).voxels, HU)


def test_two_series_with_the_same_positions(tmp_path, dicom):
    dicom.ct_series(tmp_path / "a", STORED)
    dicom.ct_series(tmp_path / "a" / "b", STORED[:4] + 5, SeriesInstanceUID="1.2.3.4.5.6")
    for path in (tmp_path / "a" / "b").iterdir():
        path.rename(tmp_path / "a" / f"other_{path.name}")
    with pytest.raises(
        InputError,
        match=r"2 acquisitions that differ in SeriesInstanceUID \(6 slices, 4 slices\).*--allow mixed_s",
    ):
        read_dicom(tmp_path / "a")
    assert np.array_equal(
        read_dicom(tmp_path / "a", ReadOptions(allow=["mixed_series"])).voxels, HU
    )


def test_a_localizer_in_the_series(tmp_path, dicom):
    dicom.ct_series(tmp_path, STORED)
    scout = dicom.ct_slice(
        *(np.ones((3, 4), np.uint16), (0, 0, 0)), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    dicom.save(scout, tmp_path / "0.dcm")
    with pytest.raises(
        InputError,
        match=r"in Rows, Columns, ImageOrient\w+ \(6 slices, 1 slice\).*--allow mixed_series",
    ):
        read_dicom(tmp_path)
    assert np.array_equal(read_dicom(tmp_path, ReadOptions(allow=["mixed_series"])).voxels, HU)


def test_other_files_are_ignored(tmp_path, dicom):
    dicom.ct_series(tmp_path, STORED)
    report = dicom.ct_slice(STORED[0], (0, 0, 0), SOPClassUID=BasicTextSRStorage)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    dicom.save(report, tmp_path / "report.dcm")
    dicom.save(report, tmp_path / "DICOMDIR")
    (tmp_path / "Thumbs.db").write_bytes(b"no DICOM")
    (tmp_path / ".hidden.dcm").write_bytes(b"no DICOM")
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


def test_a_damaged_slice_is_not_ignored(tmp_path, dicom):
    dicom.ct_series(tmp_path, STORED)
    (tmp_path / "IM0003.dcm").write_bytes(b"")
    assert "IM0003.dcm: expected a DICOM file, found a file of another kind" in refusal(tmp_path)


@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
)
def test_missing_geometry(tmp_path, dicom, keyword):
    dicom.ct_series(tmp_path, STORED, **{keyword: None})
    expected = "PixelSpacing of each frame" if keyword == "PixelSpacing" else keyword
    assert f"expected the element {expected.split()[0]}, found none" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two unit vectors"),
        ({"PixelSpacing": [0, 1]}, "positive PixelSpacing"),
        ({"RescaleSlope": 0}, "RescaleSlope other than 0"),
        ({"SamplesPerPixel": 3}, "a colour image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a grey image"),
        ({"BitsAllocated": 12}, "BitsAllocated 12"),
        ({"Rows": 0}, "at least one frame"),
        ({"Rows": 10}, "bytes of pixels that its header promises"),
        ({"NumberOfFrames": 10**9}, "at most 2147483648 voxels"),
        ({"NumberOfFrames": 10**6}, "bytes of pixels that its header promises"),
    ],
)
def test_wrong_headers(tmp_path, dicom, tags, found):
    dicom.ct_series(tmp_path, STORED, **tags)
    assert found in refusal(tmp_path)


def test_other_encodings(tmp_path, dicom):
    for name, tags in (("rle", {"syntax": RLELossless}), ("bare", {})):
        dicom.ct_series(tmp_path / name, STORED, **tags)
    for path in (tmp_path / "bare").iterdir():
        # As from old scanners: neither preamble nor meta header, implicit VR.
        old = dcmread(path)
        del old.file_meta
        old.preamble = None
        old.save_as(path, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_dicom(tmp_path / "rle").voxels, HU)
    assert np.array_equal(read_dicom(tmp_path / "bare").voxels, HU)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_no_preamble(tmp_path, dicom, syntax, suffix):
    """The meta header, with the transfer syntax, at the very beginning of the file."""
    for z, values in enumerate(STORED):
        one = dicom.ct_slice(values, (0, 0, z))
        if syntax.is_compressed:
            one.compress(syntax)
        one.file_meta.TransferSyntaxUID = syntax
        path = dicom.save(one, tmp_path / f"{z}{suffix}")
        content = path.read_bytes()
        path.write_bytes(content[132:])
        assert content[128:132] == b"DICM"
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)
    if not syntax.is_compressed:
        path.write_bytes(content[132:-14])
        # 9 x 7 pixels of two bytes, and the header of their element, 8 or 12 bytes.
        assert "the 126 bytes of pixels that its header promises" in refusal(tmp_path)


def test_bare_big_endian(tmp_path, dicom):
    """Neither preamble nor meta header, explicit VR in big endian."""
    for z, values in enumerate(STORED):
        one = dicom.ct_slice(values.astype(">u2"), (0, 0, z))
        del one.file_meta
        path = tmp_path / str(z)
        dcmwrite(path, one, implicit_vr=False, little_endian=False, force_encoding=True)
        assert path.read_bytes()[:4] == b"\0\x08\0\x16"
    assert np.array_equal(read_dicom(tmp_path).voxels, HU)


def test_pydicoms_own_ct():
    volume = read_dicom(get_testdata_file("CT_small.dcm"))
    assert volume.voxels.shape == (128, 128, 1)
    # Its header: origin -158.135803, -179.035797, -75.699997, pixels of 0.661468 mm, 5 mm thick.
    expected = [
        [-0.661468, 0, 0, 158.135803],
        [0, -0.661468, 0, 179.035797],
        [0, 0, 5, -75.699997],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(volume.affine, expected)
    assert (volume.voxels.min(), volume.voxels.max()) == (-896, 1167)


def test_names_of_allowances():
    assert parse_allowances("gaps, mixed_series") == {"gaps", "mixed_series"}
    assert parse_allowances("") == frozenset()
    assert parse_allowances(",".join(ALLOWANCES)) == {*ALLOWANCES}
    with pytest.raises(SettingsError, match=r"names among .*found holes"):
        parse_allowances("holes")
