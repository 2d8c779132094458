"""NIfTI: voxels equal to nibabel's, and a one-line error for every kind of damage."""

import contextlib
import gzip
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import InputError
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import (
    read_grid,
    read_image,
    read_label,
    write_image,
    write_on_grid,
)

CLASSES = ("background", "liver", "tumour")
AFFINE = np.array([[-0.7, 0.1, 0, 30], [0.1, 0.7, 0, -40], [0, 0, 5, 100], [0, 0, 0, 1.0]])


def ramp(shape=(5, 4, 3), dtype=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path, voxels, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(voxels, affine), path)
    return path


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert "expected" in line
    assert "found" in line
    return line


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u2", "<i4", "<f4", "<f8"])
def test_reads_what_nibabel_reads(tmp_path, suffix, kind, dtype):
    path = tmp_path / f"a{suffix}"
    image = kind(ramp(), AFFINE)
    image.set_data_dtype(dtype)
    if dtype == ">i2":
        image = kind(ramp(dtype=dtype), AFFINE, header=image.header.as_byteswapped(">"))
    nib.save(image, path)
    volume = read_image(path)
    expected = nib.load(path)
    assert np.array_equal(volume.voxels, np.asarray(expected.dataobj))
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.voxels.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, np.int16), (10, 0, np.int16), (2000, 5, np.int32), (0.5, 0.25, np.float32)],
)
def test_scaling_is_applied(tmp_path, slope, intercept, dtype):
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    # nibabel stores (value - intercept) / slope; write the raw ramp instead.
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[352:] = ramp().tobytes(order="F")
    content[112:120] = struct.pack("<ff", slope, intercept)
    path.write_bytes(gzip.compress(bytes(content)))
    volume = read_image(path)
    assert volume.voxels.dtype == dtype
    np.testing.assert_allclose(volume.voxels, ramp() * float(slope) + intercept)


def test_one_slice_and_trailing_axes_are_three_dimensional(tmp_path):
    assert read_image(save(tmp_path / "a.nii", ramp((5, 4)))).voxels.shape == (5, 4, 1)
    assert read_image(save(tmp_path / "b.nii", ramp((5, 4, 3, 1)))).voxels.shape == (5, 4, 3)
    assert read_image(save(tmp_path / "c.nii.gz", ramp((5, 4, 1)))).voxels.shape == (5, 4, 1)


@pytest.mark.parametrize(
    ("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1), (7, 1)]
)
def test_affines_are_in_mm(tmp_path, unit, factor):
    image = nib.Nifti1Image(
        (ramp() % 3).astype(np.uint8), np.diag([factor, factor, factor, 1]) @ AFFINE
    )
    if unit == 7:
        image.header["xyzt_units"] = 7  # no code of the standard
    else:
        image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii.gz")
    for read in (read_image(tmp_path / "a.nii.gz"), read_label(tmp_path / "a.nii.gz", CLASSES)):
        np.testing.assert_allclose(read.affine, AFFINE, rtol=1e-6)
    # Outputs keep the numbers and the unit of the file.
    write_on_grid(tmp_path / "b.nii.gz", read.voxels, like=tmp_path / "a.nii.gz")
    written = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(written.affine, image.affine.astype(np.float32))
    assert written.header["xyzt_units"] == nib.load(tmp_path / "a.nii.gz").header["xyzt_units"]


@pytest.mark.parametrize(("d", "found"), [(1.0000002, None), (1.01, "w2 should be positive")])
def test_quaternions_longer_than_one(tmp_path, d, found):
    """Without sform; by rounding as other programs write it, and by more."""
    voxels = (ramp() % 3).astype(np.uint8)
    content = bytearray(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes())
    struct.pack_into("<2h", content, 252, 1, 0)
    struct.pack_into("<3f", content, 256, 0.0, 0.0, d)
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    if found:
        for read in (read_image, read_grid, lambda path: read_label(path, CLASSES)):
            with pytest.raises(InputError, match=r"a\.nii: expected a qform .*found w2"):
                read(path)
    else:
        # A half turn about z.
        np.testing.assert_allclose(read_image(path).affine, np.diag([-2, -2, 5, 1]), atol=1e-5)


def test_gzip_is_detected_by_content(tmp_path):
    path = save(tmp_path / "a.nii.gz", ramp())
    renamed = path.rename(tmp_path / "a.nii")
    assert np.array_equal(read_image(renamed).voxels, ramp())


class TestDamage:
    def test_missing(self, tmp_path):
        assert "no such file" in refusal(read_image, tmp_path / "none.nii.gz")
        assert "a folder" in refusal(read_image, tmp_path)

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
    def test_truncated_gzip(self, tmp_path, share):
        path = save(
            tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, (9, 9, 9), "i2")
        )
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        assert "a.nii.gz" in refusal(read_image, path)

    def test_truncated_plain(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        path.write_bytes(path.read_bytes()[:-2])
        assert "expected the 472 bytes that its header promises, found 470" in refusal(
            read_image, path
        )

    def test_complete_gzip_of_truncated_nifti(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        zipped = tmp_path / "b.nii.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes()[:-2]))
        assert "promises, found 470" in refusal(read_image, zipped)

    def test_flipped_bit_in_the_voxels(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        content = bytearray(gzip.compress(path.read_bytes(), 0))
        content[400] ^= 1
        zipped = tmp_path / "b.nii.gz"
        zipped.write_bytes(content)
        assert "gzip" in refusal(read_image, zipped)

    @pytest.mark.parametrize(
        "content", [b"", b"hello", bytes(400), b"\x1f\x8b", b"\x1f\x8bjunk" * 99]
    )
    def test_no_nifti(self, tmp_path, content):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(content)
        refusal(read_image, path)

    def test_four_dimensions(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp((4, 3, 2, 5)))
        assert "found 4D of shape (4, 3, 2, 5)" in refusal(read_image, path)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, tmp_path, bad):
        voxels = ramp(dtype=np.float32)
        voxels[1, 2, 0] = bad
        path = save(tmp_path / "a.nii.gz", voxels)
        assert "found 1 NaN or infinite" in refusal(read_image, path)
        assert "found 1 NaN or infinite" in refusal(read_label, path, CLASSES)

    @pytest.mark.parametrize("value", [0, -1000])
    def test_constant(self, tmp_path, value):
        path = save(tmp_path / "a.nii.gz", np.full((4, 4, 4), value, np.int16))
        assert f"all voxels equal to {value}" in refusal(read_image, path)

    def test_colour_and_complex(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp(dtype=np.complex64))
        assert "complex" in refusal(read_image, path)

    def test_promise_of_a_trillion_voxels_is_refused_before_allocation(self, tmp_path):
        for suffix in (".nii", ".nii.gz"):
            path = save(tmp_path / f"a{suffix}", ramp())
            raw = path.read_bytes()
            content = bytearray(gzip.decompress(raw) if suffix == ".nii.gz" else raw)
            content[42:48] = struct.pack("<hhh", 10_000, 10_000, 10_000)
            path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
            assert "(10000, 10000, 10000)" in refusal(read_image, path)
            content[42:48] = struct.pack("<hhh", 1000, 1000, 1000)
            path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
            assert "2000000352 bytes that its header promises" in refusal(read_image, path)

    def test_negative_sizes_and_offsets(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        content = bytearray(path.read_bytes())
        content[42:44] = struct.pack("<h", -5)
        path.write_bytes(content)
        assert "-5" in refusal(read_image, path)
        content[42:44] = struct.pack("<h", 5)
        for offset in (-1000.0, 3.0, 1e30, float("nan")):
            content[108:112] = struct.pack("<f", offset)
            path.write_bytes(content)
            refusal(read_image, path)

    def test_singular_affine(self, tmp_path):
        path = save(tmp_path / "a.nii", ramp())
        content = bytearray(path.read_bytes())
        content[312:328] = bytes(16)  # srow_z
        path.write_bytes(content)
        assert "invertible" in refusal(read_image, path)

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_changed_header_byte_reads_or_is_refused(self, tmp_path_factory, data):
        folder = tmp_path_factory.getbasetemp()
        path = save(folder / "flipped.nii", ramp())
        content = bytearray(path.read_bytes())
        for position in data.draw(st.lists(st.integers(0, 351), min_size=1, max_size=4)):
            content[position] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            volume = read_image(path)
            assert volume.voxels.ndim == 3
            assert np.isfinite(volume.affine).all()


class TestBombs:
    """Small files that inflate to large ones are refused before inflating."""

    @pytest.fixture
    def bomb(self, tmp_path):
        path = save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8))
        content = bytearray(path.read_bytes()[:352])
        content[40:48] = struct.pack("<4h", 3, 512, 512, 1024)
        path = tmp_path / "bomb.nii.gz"
        path.write_bytes(gzip.compress(content) + gzip.compress(bytes(2**20)) * 257)
        return path

    def test_images_of_an_impossible_compression(self, bomb):
        tracemalloc.start()
        line = refusal(read_image, bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "compressed to 1/100 at most" in line
        assert "becomes 268435808" in line
        assert peak < 2**22

    def test_label_maps_of_another_shape(self, bomb):
        with pytest.raises(InputError, match=r"image's shape \(4, 5, 6\).*\(512, 512, 1024\)"):
            read_label(bomb, CLASSES, image=Volume(np.zeros((4, 5, 6)), AFFINE))

    def test_small_synthetic_images_and_empty_label_maps_are_accepted(self, tmp_path):
        voxels = np.zeros((200, 200, 100), np.int16)
        voxels[5, 5, 5] = 1
        path = save(tmp_path / "a.nii.gz", voxels)
        assert path.stat().st_size * 100 < voxels.nbytes
        assert read_image(path).voxels.sum() == 1
        assert read_label(path, CLASSES, image=Volume(voxels, AFFINE)).voxels.sum() == 1


@pytest.mark.filterwarnings("error")
def test_infinite_scaling_is_reported_without_warnings(tmp_path):
    path = save(tmp_path / "a.nii", ramp())
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", 3e38, 0)
    path.write_bytes(content)
    assert "NaN or infinite" in refusal(read_image, path)


def test_other_kinds_of_paths_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    assert refusal(read_image, tmp_path / "pipe.nii").endswith("a pipe, a socket or a device")
    assert refusal(read_image, tmp_path / "loop.nii").endswith("a broken link")
    assert refusal(read_image, tmp_path / "none.nii").endswith("no such file")


class TestLabels:
    def test_values_become_uint8(self, tmp_path):
        voxels = ramp() % 3
        for dtype in ("u1", "i2", "f4", "f8"):
            label = read_label(save(tmp_path / "a.nii.gz", voxels.astype(dtype)), CLASSES)
            assert label.voxels.dtype == np.uint8
            assert np.array_equal(label.voxels, voxels)

    def test_values_off_by_rounding(self, tmp_path):
        voxels = (ramp() % 3) * np.float32(0.9999999) - np.float32(4e-4)
        label = read_label(save(tmp_path / "a.nii.gz", voxels), CLASSES)
        assert np.array_equal(label.voxels, ramp() % 3)

    def test_no_foreground_is_fine(self, tmp_path):
        label = read_label(save(tmp_path / "a.nii", np.zeros((3, 3, 3), np.uint8)), CLASSES)
        assert not label.voxels.any()

    @pytest.mark.parametrize(
        ("values", "found"),
        [
            ([0, 1, 7], "found values 7"),
            ([0, -1, 2], "found values -1"),
            ([0, 0.5, 1, 256, 257], "found values 0.5, 256, 257"),
            ([0, 0.9882, 2.0011, 1.0009], "found values 0.9882, 2.0011"),
            (range(20), "found values 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 5 more"),
        ],
    )
    def test_other_values_are_named(self, tmp_path, values, found):
        voxels = np.array(list(values), np.float32).reshape(-1, 1, 1)
        line = refusal(read_label, save(tmp_path / "a.nii.gz", voxels), CLASSES)
        assert line.endswith(found)
        assert "0 background, 1 liver, 2 tumour" in line


class TestWriting:
    @pytest.mark.parametrize("codes", [(1, 1), (0, 2), (3, 0)])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_label_has_exactly_the_grid_of_the_input(self, tmp_path, codes, suffix, kind):
        source = kind(ramp(), AFFINE)
        source.set_qform(AFFINE, codes[0])
        source.set_sform(AFFINE, codes[1])
        source.header["descrip"] = b"Jane Doe"
        nib.save(source, tmp_path / "source.nii.gz")
        path = tmp_path / f"label{suffix}"
        write_on_grid(path, (ramp() % 3).astype(np.uint8), tmp_path / "source.nii.gz")
        source, label = nib.load(tmp_path / "source.nii.gz"), nib.load(path)
        assert np.array_equal(np.asarray(label.dataobj), ramp() % 3)
        assert label.get_data_dtype() == np.uint8
        assert label.shape == source.shape
        np.testing.assert_array_equal(label.affine, source.affine)
        for name in ("qform_code", "sform_code", "quatern_b", "srow_x", "pixdim", "xyzt_units"):
            assert label.header[name].tolist() == source.header[name].tolist()
        assert label.header["descrip"].item() == b""
        assert read_label(path, CLASSES).voxels.shape == (5, 4, 3)

    def test_two_dimensional_and_big_endian_sources(self, tmp_path):
        image = nib.Nifti1Image(ramp((5, 4)), AFFINE)
        swapped = nib.Nifti1Image(ramp((5, 4)), AFFINE, header=image.header.as_byteswapped(">"))
        nib.save(swapped, tmp_path / "a.nii")
        write_on_grid(tmp_path / "b.nii", np.ones((5, 4, 1), np.uint8), tmp_path / "a.nii")
        label = nib.load(tmp_path / "b.nii")
        assert label.shape == (5, 4)
        np.testing.assert_allclose(label.affine, nib.load(tmp_path / "a.nii").affine)

    def test_equal_voxels_give_equal_bytes_and_no_temporary_files(self, tmp_path):
        volume = Volume(ramp(), AFFINE)
        write_image(tmp_path / "a.nii.gz", volume)
        write_image(tmp_path / "b.nii.gz", volume)
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]
        back = nib.load(tmp_path / "a.nii.gz")
        assert np.array_equal(np.asarray(back.dataobj), ramp())
        np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)

    def test_wrong_shape_or_name_is_refused(self, tmp_path):
        source = save(tmp_path / "a.nii", ramp())
        assert "(5, 4, 3)" in refusal(write_on_grid, tmp_path / "b.nii", ramp((5, 4, 2)), source)
        assert "*.nii.gz" in refusal(write_on_grid, tmp_path / "b.png", ramp(), source)
        assert not (tmp_path / "b.png").exists()
