"""Multi-frame DICOM: tomosynthesis with and without functional groups, enhanced CT, compressed frames."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from preprocessing.dicom.multiframe import breast_side, frame_places, read_dicom, read_frames
from preprocessing.dicom.series import ReadOptions
from preprocessing.errors import InputError, SettingsError

STORED = np.random.default_rng(1).integers(0, 1024, (5, 8, 6)).astype(np.uint16)
XYZ = STORED.transpose(2, 1, 0)
# A medio-lateral oblique image: rows run to posterior and columns down, tilted by 45 degrees.
OBLIQUE = [0, 1, 0, 0.70710678, 0, -0.70710678]
NORMAL = np.array([-0.70710678, 0, -0.70710678])
GROUPS = {
    "PlaneOrientationSequence": {"ImageOrientationPatient": OBLIQUE},
    "PixelMeasuresSequence": {"PixelSpacing": [0.1, 0.09], "SliceThickness": 55},
}


def test_tomosynthesis_with_functional_groups(tmp_path, dicom):
    origin = np.array([10.0, -20.0, 30.0])
    positions = [origin + 1.2 * index * NORMAL for index in range(5)]
    dataset = dicom.multi_frame(STORED, positions=positions, shared=GROUPS)
    volume = read_dicom(dicom.save(dataset, tmp_path / "a.dcm"))
    assert volume.voxels.dtype == np.uint16
    assert np.array_equal(volume.voxels, XYZ)
    # By hand: columns of voxels are 0.09 mm along posterior, rows 0.1 mm along left and inferior.
    half = 0.70710678
    expected = [
        [0, -0.1 * half, 1.2 * half, -10],
        [-0.09, 0, 0, 20],
        [0, -0.1 * half, -1.2 * half, 30],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-5)


def test_frames_against_the_normal_keep_the_file_order(tmp_path, dicom):
    positions = [-1.2 * index * NORMAL for index in range(5)]
    dataset = dicom.multi_frame(STORED, positions=positions, shared=GROUPS)
    volume = read_dicom(dicom.save(dataset, tmp_path / "a.dcm"))
    assert np.array_equal(volume.voxels, XYZ)
    np.testing.assert_allclose(volume.affine[:3, 2], -1.2 * NORMAL * [-1, -1, 1], atol=1e-5)


def test_tomosynthesis_without_any_geometry(tmp_path, dicom):
    volume = read_dicom(dicom.save(dicom.multi_frame(STORED), tmp_path / "a.dcm"))
    assert np.array_equal(volume.voxels, XYZ)
    np.testing.assert_array_equal(volume.affine, np.diag([-0.085, -0.085, 1, 1]))


def test_incomplete_geometry(tmp_path, dicom):
    dataset = dicom.multi_frame(STORED, ImagerPixelSpacing=[0.14, 0.13], SliceThickness=0.9)
    volume = read_dicom(dicom.save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_allclose(volume.affine, np.diag([-0.13, -0.14, 0.9, 1]))
    # The same position for all frames says nothing about their order.
    dataset = dicom.multi_frame(
        *(STORED,), positions=[(1, 2, 3)] * 5, shared=GROUPS, SpacingBetweenSlices=1.5
    )
    volume = read_dicom(dicom.save(dataset, tmp_path / "b.dcm"))
    np.testing.assert_allclose(volume.affine[:3, 3], [-1, -2, 3])
    # The functional groups have a thickness, the header has a spacing: the spacing is used.
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, 2]), 1.5, rtol=1e-6)


def test_monochrome1_and_padding(tmp_path, dicom):
    stored = np.array([[[0, 1023], [1000, 23]]], np.uint16)
    dataset = dicom.multi_frame(
        stored, PhotometricInterpretation="MONOCHROME1", BitsStored=10, PixelPaddingValue=1000
    )
    volume = read_dicom(dicom.save(dataset, tmp_path / "a.dcm"))
    assert volume.voxels[:, :, 0].T.tolist() == [[1023, 0], [0, 1000]]
    signed = np.array([[[-512, 511], [0, -1]]], np.int16)
    dataset = dicom.multi_frame(signed, PhotometricInterpretation="MONOCHROME1", BitsStored=10)
    volume = read_dicom(dicom.save(dataset, tmp_path / "b.dcm"))
    assert volume.voxels[:, :, 0].T.tolist() == [[511, -512], [-1, 0]]


def test_side_from_the_pixel_edges():
    frame, blank = np.zeros((4, 5), np.uint16), np.zeros((4, 5), np.uint16)
    assert breast_side([frame, blank]) == ""  # equal sums
    frame[:, -1] = 65535
    assert breast_side([blank, frame, blank]) == "R"
    frame[:, 0] = 65535
    frame[0, -1] = 0
    assert breast_side([frame]) == "L"
    # All frames count, by their sums: 65535 too little, then 65536 too much at the right edge.
    assert breast_side([frame, np.tile([0, 0, 0, 0, 16384], (4, 1))]) == "R"
    # The middle of the image does not count.
    frame[:, 1:4] = 65535
    assert breast_side([frame[:, ::-1]]) == "R"


@pytest.mark.parametrize(("view", "turned"), [("rmlo", False), ("LCC", True), ("", False)])
def test_an_image_of_the_other_side_is_rotated(tmp_path, dicom, view, turned):
    stored = STORED.copy()
    stored[0, :, -1] += 5000  # "R" by the first frame
    path = dicom.save(dicom.multi_frame(stored), tmp_path / "a.dcm")
    expected = np.flip(stored, (1, 2)) if turned else stored
    volume = read_frames(path, ReadOptions(view=view))
    assert np.array_equal(volume.voxels, expected.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.affine, np.diag([-0.085, -0.085, 1, 1]))


@pytest.mark.parametrize("blank", [[0], [0, 1, 3], [4]])
def test_blank_frames_say_nothing_about_the_side(tmp_path, dicom, blank):
    stored = STORED.copy()
    stored[:, :, -1] += 2000
    stored[blank] = 0
    path = dicom.save(dicom.multi_frame(stored), tmp_path / "a.dcm")
    straight = read_frames(path, ReadOptions(view="rmlo"))
    assert np.array_equal(straight.voxels, stored.transpose(2, 1, 0))
    turned = read_frames(path, ReadOptions(view="lmlo"))
    assert np.array_equal(turned.voxels, straight.voxels[::-1, ::-1])
    assert frame_places(path, ReadOptions(view="rmlo"))[1] is False
    assert frame_places(path, ReadOptions(view="lmlo"))[1] is True


def test_a_breast_at_neither_edge_is_refused(tmp_path, dicom):
    stored = STORED.copy()
    stored[:, :, [0, -1]] = 7
    path = dicom.save(dicom.multi_frame(stored), tmp_path / "a.dcm")
    for read in (read_frames, frame_places):
        with pytest.raises(InputError, match="equal sums of the first and last columns"):
            read(path, ReadOptions(view="rcc"))
    assert np.array_equal(read_frames(path).voxels, stored.transpose(2, 1, 0))


def test_the_affine_follows_the_rotation(tmp_path, dicom):
    stored = STORED.copy()
    stored[0, :, -1] += 5000
    positions = [1.2 * index * NORMAL for index in range(5)]
    path = dicom.save(
        dicom.multi_frame(stored, positions=positions, shared=GROUPS), tmp_path / "a.dcm"
    )
    straight, turned = (
        read_frames(path, ReadOptions(view="rcc")),
        read_frames(path, ReadOptions(view="lcc")),
    )
    for x, y, z in [(0, 0, 0), (5, 7, 4), (2, 3, 1)]:
        assert straight.voxels[x, y, z] == turned.voxels[5 - x, 7 - y, z]
        here, there = straight.affine @ [x, y, z, 1], turned.affine @ [5 - x, 7 - y, z, 1]
        np.testing.assert_allclose(here, there, atol=1e-9)


def test_views_without_a_side_are_refused(tmp_path, dicom):
    path = dicom.save(dicom.multi_frame(STORED), tmp_path / "a.dcm")
    with pytest.raises(SettingsError, match="begins with L or R"):
        read_frames(path, ReadOptions(view="cc"))


CT_GROUPS = {
    "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    "PixelMeasuresSequence": {"PixelSpacing": [0.8, 0.7], "SliceThickness": 99},
}


def enhanced(dicom, path, places, *, slopes=None, **options):
    """An enhanced CT with frames at z = places, in that order in the file."""
    groups = None
    if slopes is not None:
        groups = [
            {"PixelValueTransformationSequence": {"RescaleSlope": s, "RescaleIntercept": -1000}}
            for s in slopes
        ]
    shared = CT_GROUPS if slopes is not None else CT_GROUPS | SCALING
    dataset = dicom.multi_frame(
        STORED[: len(places)],
        positions=[(-20, -30, z) if np.isscalar(z) else z for z in places],
        per_frame=groups,
        **({"shared": shared, "ct": True} | options),
    )
    return dicom.save(dataset, path)


SCALING = {"PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": -1024}}


def test_enhanced_ct_is_sorted_by_position(tmp_path, dicom):
    volume = read_dicom(enhanced(dicom, tmp_path / "a", [20, 10, 0, 40, 30]))
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, XYZ[:, :, [2, 1, 0, 4, 3]].astype(int) - 1024)
    expected = [[-0.7, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 10, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)


def test_enhanced_ct_scales_each_frame(tmp_path, dicom):
    volume = read_dicom(enhanced(dicom, tmp_path / "a", range(5), slopes=[1, 1, 2, 1, 3]))
    assert np.array_equal(volume.voxels, XYZ.astype(int) * [1, 1, 2, 1, 3] - 1000)


def test_irregular_frames(tmp_path, dicom):
    path = enhanced(dicom, tmp_path / "gap", [0, 1, 2, 4, 5])
    with pytest.raises(InputError, match="--allow gaps"):
        read_dicom(path)
    assert read_dicom(path, ReadOptions(allow=["gaps"])).affine[2, 2] == 1.25
    path = enhanced(dicom, tmp_path / "twin", [0, 1, 1, 2, 3])
    with pytest.raises(InputError, match="--allow duplicate_slices"):
        read_dicom(path)
    kept = read_dicom(path, ReadOptions(allow=["duplicate_slices"])).voxels
    assert np.array_equal(kept, XYZ[:, :, [0, 1, 3, 4]].astype(int) - 1024)
    path = enhanced(dicom, tmp_path / "tilt", [(0, z, z) for z in range(5)])
    with pytest.raises(InputError, match=r"tilt of 45\.0 degrees.*--allow gantry_tilt"):
        read_dicom(path)
    other = {"PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}
    dataset = dicom.multi_frame(
        STORED,
        positions=[(0, 0, z) for z in range(5)],
        per_frame=[{}, {}, {}, other, other],
        shared=CT_GROUPS,
        ct=True,
    )
    path = dicom.save(dataset, tmp_path / "mixed")
    with pytest.raises(InputError, match="--allow mixed_series"):
        read_dicom(path)
    assert np.array_equal(
        read_dicom(path, ReadOptions(allow=["mixed_series"])).voxels, XYZ[:, :, :3]
    )


def test_enhanced_ct_needs_its_geometry(tmp_path, dicom):
    path = dicom.save(dicom.multi_frame(STORED, ct=True, shared=CT_GROUPS), tmp_path / "a")
    with pytest.raises(InputError, match="ImagePositionPatient"):
        read_dicom(path)


def gdcm_compressed(source, target, kind):
    """Compresses a file with GDCM, independently of pydicom."""
    import gdcm

    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(target))
    assert writer.Write()
    return target


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("JPEG2000Lossless", JPEG2000Lossless),
        ("JPEGLosslessProcess14_1", JPEGLosslessSV1),
        ("JPEGLSLossless", JPEGLSLossless),
        ("RLELossless", RLELossless),
    ],
)
def test_compressed_frames(tmp_path, dicom, kind, syntax):
    # Smooth like real images, and larger than a codec's smallest block.
    ramp = np.add.outer(np.arange(40), np.arange(50)) * 9
    stored = np.stack([ramp + 100 * z for z in range(4)]).astype(np.uint16)
    plain = dicom.save(dicom.multi_frame(stored), tmp_path / "plain.dcm")
    path = gdcm_compressed(plain, tmp_path / "small.dcm", kind)
    assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_dicom(path).voxels, stored.transpose(2, 1, 0))
    # Without the preamble too.
    path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(read_dicom(path).voxels, stored.transpose(2, 1, 0))


def test_pydicoms_own_compressed_files():
    plain = read_dicom(get_testdata_file("MR_small.dcm"))
    for name in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit"):
        volume = read_dicom(get_testdata_file(f"MR_small_{name}.dcm"))
        assert np.array_equal(volume.voxels, plain.voxels), name
        np.testing.assert_allclose(volume.affine, plain.affine)
    # Signed according to the header, unsigned according to the stream.
    volume = read_dicom(get_testdata_file("J2K_pixelrep_mismatch.dcm"))
    assert (volume.voxels.min(), volume.voxels.max()) == (-2000, 1896)


def test_pydicoms_own_enhanced_mr():
    names = ("emri_small.dcm", "emri_small_jpeg_2k_lossless.dcm", "emri_small_RLE.dcm")
    paths = [get_testdata_file(name, download=False) for name in names]
    if None in paths:
        pytest.skip("pydicom brings its enhanced MR files only by download")
    volumes = [read_dicom(path) for path in paths]
    assert volumes[0].voxels.shape == (64, 64, 10)
    assert all(np.array_equal(volume.voxels, volumes[0].voxels) for volume in volumes)


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_dicom(path)
    return str(caught.value)


def test_damaged_streams_do_not_end_the_process(tmp_path, dicom):
    """Codecs crash on some of these."""
    content = bytearray(Path(get_testdata_file("JPEGLSNearLossless_16.dcm")).read_bytes())
    reasons = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        damaged = content.copy()
        for place in rng.integers(len(content) // 2, len(content) - 10, 20):
            damaged[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{seed}.dcm"
        path.write_bytes(damaged)
        try:
            read_dicom(path)
        except InputError as error:
            reasons.add(str(error))
    assert reasons


def test_a_decoder_that_crashes_is_an_error_of_the_file(tmp_path, dicom, monkeypatch):
    path = get_testdata_file("MR_small_jp2klossless.dcm")
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert "the decoder crashed" in refusal(path)


def test_a_decoder_that_hangs_is_stopped(monkeypatch, tmp_path):
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(sleeper))
    monkeypatch.setattr("preprocessing.dicom.pixels.DECODER_SECONDS", 0.3)
    assert "the decoder crashed" in refusal(get_testdata_file("MR_small_jp2klossless.dcm"))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"NumberOfFrames": 10**9}, "at most 2147483648 voxels"),
        ({"NumberOfFrames": 6}, "bytes of compressed pixels (truncated?)"),
        ({"Rows": 60000, "Columns": 7000}, "bytes of compressed pixels (truncated?)"),
        ({"Rows": 3, "NumberOfFrames": 2}, "damaged or unknown ones"),
    ],
)
def test_compressed_files_with_wrong_headers(tmp_path, dicom, tags, found):
    dataset = dicom.multi_frame(STORED)
    dataset.compress(RLELossless)
    dataset.PixelData = encapsulate([b"\0" * 4], has_bot=False)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    assert found in refusal(dicom.save(dataset, tmp_path / "a.dcm"))


def test_a_frame_of_another_size_than_in_the_header(tmp_path):
    source = dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    source.Rows = 63
    path = tmp_path / "a.dcm"
    source.save_as(path)
    assert "damaged or unknown ones" in refusal(path)


def test_every_truncation_is_refused(tmp_path, dicom):
    positions = [1.2 * index * NORMAL for index in range(5)]
    path = dicom.save(
        dicom.multi_frame(STORED, positions=positions, shared=GROUPS), tmp_path / "a.dcm"
    )
    content = path.read_bytes()
    for size in (*range(0, len(content) - 500, 97), len(content) - 1):
        path.write_bytes(content[:size])
        assert "expected" in refusal(path)


def test_every_flipped_byte_reads_or_is_refused(tmp_path, dicom):
    """Headers of 200 files with one byte changed: a volume of the promised size, or a typed error."""
    positions = [1.2 * index * NORMAL for index in range(5)]
    path = dicom.save(
        dicom.multi_frame(STORED, positions=positions, shared=GROUPS), tmp_path / "a.dcm"
    )
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(content) - STORED.nbytes, 200):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert read_dicom(path).voxels.nbytes <= 2 * STORED.nbytes
        except InputError:
            refused += 1
    assert refused > 10


def test_no_deflated_bombs(tmp_path):
    assert "not deflated" in refusal(get_testdata_file("image_dfl.dcm"))


def test_other_kinds_of_files(tmp_path):
    assert "no Rows and Columns" in refusal(get_testdata_file("test-SR.dcm"))
    assert "a colour image" in refusal(get_testdata_file("SC_rgb_rle.dcm"))
    assert "no such file" in refusal(tmp_path / "none.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert "a file of another kind" in refusal(tmp_path / "text.dcm")
    assert "8142 (truncated?)" in refusal(get_testdata_file("MR_truncated.dcm"))
