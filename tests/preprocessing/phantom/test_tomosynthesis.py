"""Projection and reconstruction, against hand-derived values and scikit-image's own."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import iradon, radon

from preprocessing.phantom.tomosynthesis import ARCS, Scan, measured, project, reconstruct

ANGLES = np.deg2rad([-25.0, -10.0, 0.0, 15.0])
CLEAN = {"quanta_mm2": 1e12, "blur_mm": 1e-3}


def smooth_square(size: int) -> np.ndarray:
    """A plane [y, z] of smooth blobs, zero near its edge."""
    random = np.random.default_rng(3)
    plane = np.zeros((size, size))
    y, z = np.ogrid[:size, :size]
    for _ in range(6):
        cy, cz = size / 2 + random.uniform(-size / 5, size / 5, 2)
        squared = (y - cy) ** 2 + (z - cz) ** 2
        plane += random.uniform(0.5, 1) * np.exp(-squared / 2 / random.uniform(3, 7) ** 2)
    return plane


def test_a_point_falls_where_its_ray_meets_the_detector():
    """A spot 10 mm above the detector moves by 10 tan(angle) mm and darkens rays by their length."""
    z_mm = np.arange(0, 21, 1.0)
    volume = np.zeros((1, 64, 21), np.float32)
    spot = np.exp(-np.square(np.arange(64) - 20) / 2 / 1.5**2)
    volume[0, :, 10] = 0.3 * spot / spot.sum()
    shadows = project(volume, z_mm, ANGLES, pixel_mm=0.5, margin=24)[:, 0]
    rows = np.arange(shadows.shape[1])
    for shadow, angle in zip(shadows, ANGLES, strict=True):
        place = (shadow * rows).sum() / shadow.sum()
        assert place == pytest.approx(24 + 20 + 10 * np.tan(angle) / 0.5, abs=0.05)
        assert shadow.sum() == pytest.approx(0.3 * 1.0 / np.cos(angle), rel=1e-4)


def test_line_integrals_are_those_of_scikit_image():
    """Its detector turns with the tube: its coordinate s is ours, t, times the angle's cosine."""
    size = 129
    plane = smooth_square(size)
    z_mm = np.arange(size) - (size - 1) / 2
    margin = int(np.ceil(z_mm[-1] * np.tan(ANGLES[0] * -1))) + 2
    ours = project(plane[np.newaxis].astype(np.float32), z_mm, ANGLES, 1.0, margin)[:, 0]
    # radon's rows count downwards, so its angles have the opposite sign.
    theirs = radon(plane.T, -np.rad2deg(ANGLES), circle=True)
    t = np.arange(ours.shape[1]) - margin - size // 2
    for number, angle in enumerate(ANGLES):
        places = size // 2 + t * np.cos(angle)
        expected = ndimage.map_coordinates(theirs[:, number], [places], order=1)
        np.testing.assert_allclose(ours[number], expected, atol=0.01 * ours[number].max())


def test_reconstruction_is_that_of_scikit_image():
    """Filtered back-projection of the same views with Hann's window, up to one scale."""
    size = 129
    plane = smooth_square(size)
    z_mm = np.arange(size) - (size - 1) / 2
    scan = Scan(25.0, 25, **CLEAN)
    margin = int(np.ceil(z_mm[-1] * np.tan(np.deg2rad(25)))) + 2
    ours = reconstruct(
        project(plane[np.newaxis].astype(np.float32), z_mm, scan.angles, 1.0, margin),
        *(z_mm, scan, 1.0, margin),
    )[0]
    degrees = -np.rad2deg(scan.angles)
    theirs = iradon(radon(plane.T, degrees, circle=True), degrees, filter_name="hann").T
    inside = np.hypot(*np.ogrid[-64:65, -64:65]) < 45
    assert np.corrcoef(ours[inside], theirs[inside])[0, 1] > 0.99
    # iradon scales by pi / views, as for views all around.
    scale = np.polyfit(theirs[inside], ours[inside], 1)[0]
    assert scale == pytest.approx(np.deg2rad(50) / 24 / (np.pi / 25), rel=0.05)


def test_a_narrow_arc_smears_further_along_z():
    """A disc's brightness at n mm from its slice falls with 2 n tan(arc), the spread of its shadows."""
    left = {}
    for arc, (arc_degrees, views) in ARCS.items():
        scan = Scan(arc_degrees, views, **CLEAN)
        y_mm, z_mm = np.arange(200) * 0.5 - 50, np.arange(41) - 20.0
        disc = (np.hypot(*np.ix_(y_mm, z_mm)) < 4).astype(np.float32)[np.newaxis]
        margin = int(np.ceil(20 * np.tan(np.deg2rad(arc_degrees)) / 0.5)) + 1
        views = project(disc, z_mm, scan.angles, 0.5, margin)
        profile = reconstruct(views, z_mm, scan, 0.5, margin)[0, 100]
        assert profile[0] == pytest.approx(profile[40], abs=0.02 * float(profile[20]))
        left[arc] = profile[[30, 36]] / profile[20]
    # At 16 mm the wide arc spreads the shadows over 15 mm, the narrow one over 4, half of the disc.
    assert left["wide"][1] < 0.4 < 0.9 < left["narrow"][1]
    assert left["wide"][1] < left["wide"][0] < 0.75


def test_noise_is_that_of_the_quanta():
    """Behind a uniform slab N quanta give a standard deviation of 1 / sqrt(N) of the line integral."""
    scan = Scan(25.0, 3, quanta_mm2=2500.0, blur_mm=1e-3)
    integrals = np.full((3, 100, 100), 2.0, np.float32)
    noisy = measured(integrals, scan, (0.4, 0.4), np.random.default_rng(0))
    assert noisy.mean() == pytest.approx(2.0, abs=0.002)
    assert noisy.std() == pytest.approx(1 / np.sqrt(2500 * 0.16), rel=0.03)


def test_no_quanta_are_no_infinite_line_integral():
    scan = Scan(25.0, 1, quanta_mm2=1.0, blur_mm=1e-3)
    integrals = np.full((1, 8, 8), 2.0, np.float32)
    integrals[0, 0, 0] = 3.9
    assert np.isfinite(measured(integrals, scan, (0.4, 0.4), np.random.default_rng(0))).all()
