"""Writes hundreds of damaged volumes and some valid ones, one folder per case, from one seed."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (16, 14, 6)
AFFINE = np.diag([0.8, 0.8, 5.0, 1.0])
HEADER = 352

SOUND, REFUSED, EITHER, SAME_VOXELS = "sound", "refused", "either", "same voxels or refused"


class Corpus:
    """A folder of cases, and the expected outcome of converting each."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.expected: dict[str, str] = {}
        self.image, self.label = self._volume(), self._label()
        self.plain = nifti_bytes(self.image)
        self.packed = gzip.compress(self.plain, mtime=0)
        self.label_plain = nifti_bytes(self.label)
        self.label_packed = gzip.compress(self.label_plain, mtime=0)
        # The x and y axes of DICOM are reversed.
        self.label_of_dicom = gzip.compress(
            nifti_bytes(self.label, AFFINE @ np.diag([-1, -1, 1, 1]))
        )

    def _volume(self) -> np.ndarray:
        return self.random.integers(-1000, 1000, SHAPE, np.int16)

    def _label(self) -> np.ndarray:
        return self.random.integers(0, 3, SHAPE, np.uint8)

    def case(self, kind: str, expected: str) -> Path:
        """Makes the folder of the next case; its name contains no word like image or label."""
        name = f"{len(self.expected):04d}-{kind}"
        self.expected[name] = expected
        (self.folder / name).mkdir(parents=True)
        return self.folder / name

    def sound(self, kind: str, folder: Path | None = None) -> None:
        """Writes a valid case with new voxels."""
        folder = folder or self.case(kind, SOUND)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ct.nii.gz").write_bytes(gzip.compress(nifti_bytes(self._volume())))
        (folder / "label.nii.gz").write_bytes(self.label_packed)

    def image_case(self, kind: str, content: bytes, expected: str = REFUSED) -> None:
        """Writes a damaged image, compressed or not, beside a valid label map."""
        folder = self.case(kind, expected)
        suffix = ".nii.gz" if content[:2] == b"\x1f\x8b" or "gz" in kind else ".nii"
        (folder / f"ct{suffix}").write_bytes(content)
        (folder / "label.nii.gz").write_bytes(self.label_packed)

    def label_case(self, kind: str, content: bytes, expected: str = REFUSED) -> None:
        """Writes a damaged label map beside a valid image."""
        folder = self.case(kind, expected)
        (folder / "ct.nii").write_bytes(self.plain)
        suffix = ".nii.gz" if content[:2] == b"\x1f\x8b" or "gz" in kind else ".nii"
        (folder / f"label{suffix}").write_bytes(content)

    def dicom_case(self, kind: str, file: Path, content: bytes, expected: str = REFUSED) -> None:
        """Writes a damaged multi-frame file beside a valid label map."""
        folder = self.case(kind, expected)
        (folder / f"ct{file.suffix}").write_bytes(content)
        (folder / "label.nii.gz").write_bytes(self.label_of_dicom)

    def series_case(self, kind: str, series: Path, name: str, content: bytes, expected: str):
        """Writes a series with one damaged slice beside a valid label map."""
        folder = self.case(kind, expected)
        shutil.copytree(series, folder / "ct")
        (folder / "ct" / name).write_bytes(content)
        (folder / "label.nii.gz").write_bytes(self.label_of_dicom)


def nifti_bytes(voxels: np.ndarray, affine: np.ndarray = AFFINE, kind=nib.Nifti1Image) -> bytes:
    """Returns a valid, uncompressed NIfTI file."""
    return kind(voxels, affine).to_bytes()


def patched(content: bytes, offset: int, form: str, *values) -> bytes:
    """Returns the bytes with little-endian numbers written at an offset."""
    new = struct.pack(f"<{form}", *values)
    return content[:offset] + new + content[offset + len(new) :]


def flipped(content: bytes, bits: list[int]) -> bytes:
    """Returns the bytes with single bits flipped."""
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def write_corpus(folder: Path, seed: int, write_dicom: Callable) -> Corpus:
    """Writes all cases; `expected` of the result is {name of the folder: outcome}.

    Args:
      folder: a new folder, a case in each subfolder.
      seed: of voxels and of the flipped bits.
      write_dicom: (folder, HU [slice, row, column]) -> (a multi-frame file, a folder of slices
        with voxels brighter by 1), on the grid of `AFFINE` in DICOM's axes.
    """
    corpus = Corpus(folder, seed)
    for number in range(3):
        corpus.sound(f"sound-{number}")
    truncated(corpus)
    bits_flipped(corpus)
    wrong_headers(corpus)
    wrong_voxels(corpus)
    bombs(corpus)
    no_files(corpus)
    odd_names(corpus)
    dicom(corpus, *write_dicom(folder.parent / "dicom", corpus.image.T))
    corpus.sound("sound-last")
    return corpus


def truncated(corpus: Corpus) -> None:
    """Truncates files at the boundaries of their parts."""
    plain, packed = corpus.plain, corpus.packed
    for size in (
        0,
        1,
        2,
        3,
        4,
        40,
        107,
        344,
        347,
        348,
        351,
        352,
        353,
        len(plain) // 2,
        len(plain) - 1,
    ):
        corpus.image_case(f"cut-{size}", plain[:size])
    ends = [len(packed) - behind for behind in (1, 3, 4, 7, 8, 9, 10)]
    for size in (0, 1, 2, 3, 9, 10, 11, 15, 100, 300, 500, len(packed) // 2, *ends):
        corpus.image_case(f"cut-gz-{size}", packed[:size])
    for size in (0, 100, 352, len(corpus.label_plain) - 1):
        corpus.label_case(f"map-cut-{size}", corpus.label_plain[:size])
    for size in (0, 10, 200, len(corpus.label_packed) - 8, len(corpus.label_packed) - 1):
        corpus.label_case(f"map-cut-gz-{size}", corpus.label_packed[:size])


def bits_flipped(corpus: Corpus) -> None:
    """Flips bits of headers, of voxels and of compressed streams."""
    for number in range(60):
        bits = corpus.random.integers(0, 8 * HEADER, 1 + number % 3)
        corpus.image_case(f"flip-header-{number}", flipped(corpus.plain, list(bits)), EITHER)
    for number in range(6):
        bit = int(corpus.random.integers(8 * HEADER, 8 * len(corpus.plain)))
        corpus.image_case(f"flip-voxels-{number}", flipped(corpus.plain, [bit]), EITHER)
    for number in range(50):
        bit = int(corpus.random.integers(0, 8 * len(corpus.packed)))
        # The checksum detects changes: accepted voxels are the original ones.
        corpus.image_case(f"flip-gz-{number}", flipped(corpus.packed, [bit]), SAME_VOXELS)
    for number in range(20):
        bit = int(corpus.random.integers(0, 8 * HEADER))
        corpus.label_case(f"map-flip-{number}", flipped(corpus.label_plain, [bit]), EITHER)


def wrong_headers(corpus: Corpus) -> None:
    """Writes headers that do not match the file, or make no sense."""
    plain = corpus.plain
    huge = patched(plain, 40, "8h", 3, 10_000, 10_000, 10_000, 1, 1, 1, 1)  # 10^12 voxels
    second = nifti_bytes(corpus.image, kind=nib.Nifti2Image)
    cases = {
        "promise-1e12": huge,
        "promise-1e12-gz": gzip.compress(huge),
        "promise-1e18": patched(second, 16, "8q", 3, 10**6, 10**6, 10**6, 1, 1, 1, 1),
        "promise-overflow": patched(second, 16, "8q", 3, 2**62, 2**62, 2**62, 1, 1, 1, 1),
        "promise-1GB-gz": gzip.compress(patched(plain, 40, "4h", 3, 1024, 1024, 512)),
        "promise-twice": patched(plain, 40, "4h", 3, *SHAPE[:2], 2 * SHAPE[2]),
        "promise-twice-gz": gzip.compress(patched(plain, 40, "4h", 3, *SHAPE[:2], 2 * SHAPE[2])),
        "negative-size": patched(plain, 40, "4h", 3, -16, 14, 6),
        "zero-size": patched(plain, 40, "4h", 3, 16, 0, 6),
        "all-negative": patched(plain, 40, "8h", *[-1] * 8),
        "no-axes": patched(plain, 40, "h", 0),
        "eight-axes": patched(plain, 40, "h", 8),
        "four-axes": patched(plain, 40, "5h", 4, 16, 14, 3, 2),
        "offset-nan": patched(plain, 108, "f", np.nan),
        "offset-inf": patched(plain, 108, "f", np.inf),
        "offset-1e30": patched(plain, 108, "f", 1e30),
        "offset-1e30-gz": gzip.compress(patched(plain, 108, "f", 1e30)),
        "offset-negative": patched(plain, 108, "f", -352),
        "offset-in-header": patched(plain, 108, "f", 16),
        "offset-behind-end": patched(plain, 108, "f", 1e6),
        "wrong-magic": patched(plain, 344, "4s", b"ni1\0"),
        "no-magic": patched(plain, 344, "4s", b"abcd"),
        "wrong-size-of-header": patched(plain, 0, "i", 12345),
        "slope-inf": patched(plain, 112, "2f", np.inf, 0),
        "intercept-nan": patched(plain, 112, "2f", 1, np.nan),
        "intercept-inf": patched(plain, 112, "2f", 2, -np.inf),
        "unknown-type": patched(plain, 70, "2h", 7777, 16),
        "no-type": patched(plain, 70, "2h", 0, 0),
        "affine-nan": patched(plain, 280, "4f", *[np.nan] * 4),
        "affine-zero": patched(plain, 280, "12f", *[0] * 12),
        "affine-inf": patched(plain, 292, "f", np.inf),
        "affine-1e300": patched(second, 400, "4d", *[1e300] * 4),
        "text": b"This is no volume. " * 60,
        "another-gz": gzip.compress(b"no volume " * 200),
        "zeros": bytes(5000),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(2000),
    }
    for kind, content in cases.items():
        corpus.image_case(kind, content)
    # nibabel takes NaN for "no scaling", and so is a slope of 0 defined.
    corpus.image_case("slope-nan", patched(plain, 112, "2f", np.nan, 0), EITHER)
    corpus.image_case("slope-zero", patched(plain, 112, "2f", 0, 5), EITHER)
    corpus.image_case("slope-1e38", patched(plain, 112, "2f", 3e38, 0), REFUSED)
    for kind, size in (("spacing-zero", 0.0), ("spacing-nan", np.nan), ("spacing-inf", np.inf)):
        no_sform = patched(patched(plain, 252, "2h", 0, 0), 80, "3f", size, size, size)
        corpus.image_case(kind, no_sform, EITHER)


def wrong_voxels(corpus: Corpus) -> None:
    """Writes valid files with voxels that are not an image or a label map."""
    image, label = corpus.image.astype(np.float32), corpus.label
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nan, infinite, constant = image.copy(), image.copy(), np.full(SHAPE, 7, np.int16)
    nan[3, 3, 3], infinite[2, 2, 2] = np.nan, -np.inf
    for kind, voxels in {
        "nan": nan,
        "all-nan": np.full(SHAPE, np.nan, np.float32),
        "infinite": infinite,
        "constant": constant,
        "complex": image.astype(np.complex64),
        "complex-128": image.astype(np.complex128),
        "rgb": rgb,
        "two-channels": np.stack([corpus.image] * 2, -1),
        "five-axes": np.stack([corpus.image] * 3, -1)[..., None, :],
    }.items():
        corpus.image_case(f"voxels-{kind}", nifti_bytes(voxels))
        corpus.image_case(f"voxels-{kind}-gz", gzip.compress(nifti_bytes(voxels)))
    # The format of 128-bit numbers depends on the machine.
    longer = patched(corpus.plain, 70, "2h", 1536, 128) + bytes(14 * corpus.image.size)
    corpus.image_case("voxels-float128", longer, EITHER)
    for kind, voxels in {
        "nan": nan,
        "too-high": label + 3,
        "negative": label.astype(np.int16) - 1,
        "half": label / 2,
        "real-values": corpus.image / 7,
        "rgb": rgb,
        "complex": label.astype(np.complex64),
        "other-shape": label[:, :, 1:],
        "turned": label.transpose(1, 0, 2),
        "huge-values": label.astype(np.float64) * 1e300,
    }.items():
        corpus.label_case(f"map-{kind}", nifti_bytes(voxels))
    moved = AFFINE.copy()
    moved[2, 3] = 5
    corpus.label_case("map-moved", nifti_bytes(label, moved))
    corpus.label_case("map-flipped", nifti_bytes(label, AFFINE @ np.diag([-1, 1, 1, 1])))


def bombs(corpus: Corpus) -> None:
    """Writes small files that inflate to gigabytes."""
    zeros = gzip.compress(bytes(2**26), 9)  # 64 MiB in 65 kB
    gigabyte = (1024, 1024, 512)
    header = patched(corpus.plain[:HEADER], 40, "4h", 3, *gigabyte)
    corpus.image_case("bomb-1GB", gzip.compress(header) + zeros * 17)
    # Bytes after the voxels are ignored.
    corpus.image_case("bomb-behind", corpus.packed + zeros * 32, EITHER)
    corpus.image_case("bomb-nested-gz", gzip.compress(gzip.compress(bytes(2**24)) * 8))
    corpus.image_case("bomb-offset", gzip.compress(patched(header, 108, "f", 1e9)) + zeros * 17)
    label_header = patched(corpus.label_plain[:HEADER], 40, "4h", 3, *gigabyte)
    corpus.label_case("bomb-map", gzip.compress(label_header) + zeros * 9)
    reals = patched(label_header, 70, "2h", 64, 64)
    corpus.label_case("bomb-map-reals", gzip.compress(reals) + zeros * 65)
    # gzip with an endless name in its header, and an endless stream.
    corpus.image_case("gz-endless-name", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 100_000)
    stored = b"\x00" + struct.pack("<HH", 0, 0xFFFF)  # empty blocks
    corpus.image_case("gz-empty-blocks", b"\x1f\x8b\x08" + bytes(7) + stored * 20_000)
    corpus.image_case("gz-of-nothing", gzip.compress(b""))
    corpus.image_case("gz-deflate-only", zlib.compress(corpus.plain))
    for kind, garbage in (
        ("zeros", bytes(1000)),
        ("text", b"garbage" * 50),
        ("magic", b"\x1f\x8b"),
    ):
        corpus.image_case(f"gz-then-{kind}", corpus.packed + garbage, SAME_VOXELS)


def no_files(corpus: Corpus) -> None:
    """Puts links, pipes, sockets and folders where files should be."""

    def place(kind: str, make: Callable[[Path], object], name: str = "ct.nii.gz") -> None:
        folder = corpus.case(f"{kind}-{len(name)}", REFUSED)
        other = "label.nii.gz" if name.startswith("ct") else "ct.nii.gz"
        sound = corpus.label_packed if other.startswith("label") else corpus.packed
        (folder / other).write_bytes(sound)
        make(folder / name)

    def listening(path: Path) -> None:
        # Paths of sockets must be short: bind from the folder.
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(path.parent)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.fchdir(here)
            os.close(here)

    for name in ("ct.nii.gz", "ct.nii", "label.nii.gz"):
        place("dangling", lambda path: path.symlink_to("nowhere.nii.gz"), name)
        place("loop", lambda path: path.symlink_to(path.name), name)
        place("pipe", os.mkfifo, name)
        place("socket", listening, name)
        place("folder", Path.mkdir, name)
        place("device", lambda path: path.symlink_to("/dev/zero"), name)
        place("missing", lambda path: None, name)
    folder = corpus.case("pipes-without-suffix", SOUND)
    corpus.sound("", folder)
    os.mkfifo(folder / "notes")
    os.mkfifo(folder / "IM0001.dcm")
    folder = corpus.case("loop-of-folders", SOUND)
    corpus.sound("", folder)
    (folder / "again").symlink_to(folder)
    (folder / "up").symlink_to("..")


def odd_names(corpus: Corpus) -> None:
    """Writes valid cases with names that could break logs, JSON or file systems."""
    for name in (
        "two\nlines",
        "tab\there",
        "..dots..",
        "...",
        "a..b",
        "-rf",
        "%s %d {0}",
        "$(touch hacked); `id`",
        "quote'\"",
        "back\\slash",
        "Müller-Straße",
        "肝臓",
        "\u202egnp.exe",
        "\U0001f9e0",
        "*?[a]",
        "n" * 120,
        "o" * 240,
        "CON",
        os.fsdecode(b"\xff\xfe-no-text"),
    ):
        if name.startswith("."):  # hidden folders are left out
            name = f"x{name}"
        folder = corpus.folder / name
        corpus.expected[name] = SOUND
        corpus.sound("", folder)


def dicom(corpus: Corpus, frames: Path, series: Path) -> None:
    """Damages a multi-frame file and slices of a series."""
    content = frames.read_bytes()
    names = sorted(path.name for path in series.iterdir())
    corpus.dicom_case("dicom-sound", frames, content, SOUND)
    first = (series / names[0]).read_bytes()
    corpus.series_case("series-sound", series, names[0], first, SOUND)
    pixels = content.index(b"\xe0\x7f\x10\x00")
    for size in (0, 1, 131, 132, 140, 300, pixels - 1, pixels, pixels + 4, pixels + 12):
        corpus.dicom_case(f"dicom-cut-{size}", frames, content[:size])
    for size in (len(content) // 2, len(content) - 2):
        corpus.dicom_case(f"dicom-cut-{size}", frames, content[:size])
    for number in range(40):
        bits = corpus.random.integers(8 * 128, 8 * pixels, 1 + number % 2)
        corpus.dicom_case(f"dicom-flip-{number}", frames, flipped(content, list(bits)), EITHER)
    for number, kind in enumerate(("empty", "text", "cut", "half")):
        name = names[number % len(names)]
        sound = (series / name).read_bytes()
        size = {"empty": 0, "cut": 200, "half": len(sound) // 2}.get(kind, 0)
        damaged = b"no slice" * 30 if kind == "text" else sound[:size]
        corpus.series_case(f"series-{kind}", series, name, damaged, EITHER)
    for number in range(16):
        name = names[number % len(names)]
        sound = (series / name).read_bytes()
        bit = int(corpus.random.integers(8 * 128, 8 * len(sound)))
        corpus.series_case(f"series-flip-{number}", series, name, flipped(sound, [bit]), EITHER)
    for element, form, value in (
        (b"\x28\x00\x10\x00US\x02\x00", "H", 65535),  # Rows
        (b"\x28\x00\x11\x00US\x02\x00", "H", 0),  # Columns
        (b"\x28\x00\x00\x01US\x02\x00", "H", 64),  # BitsAllocated
        (b"\x28\x00\x02\x00US\x02\x00", "H", 3),  # SamplesPerPixel
        (b"\x28\x00\x08\x00IS\x02\x00", "2s", b"-6"),  # NumberOfFrames
        (b"\x28\x00\x08\x00IS\x02\x00", "2s", b"99"),
        (b"\x28\x00\x08\x00IS\x02\x00", "2s", b"xx"),
        (b"\x28\x00\x52\x10DS", "H", 65535),  # length of RescaleIntercept
    ):
        place = content.find(element)
        if place >= 0:
            lie = patched(content, place + len(element), form, value)
            corpus.dicom_case(f"dicom-lie-{len(corpus.expected)}", frames, lie)


def paths_below(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())
