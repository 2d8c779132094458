"""Pairs images with label maps by the words in the names of files and folders.

Letters and digits are words of their own, and so are the parts of `labelsTr`. A word such as
`image` or `seg` gives the role; the others must agree, with or without nnU-Net's channel.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.datasets.case import Case, PassedOver, folder_name, safe_id
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import SUFFIXES, has_nifti_suffix

# Words in the names of files and folders, in lower case.
_LABEL = re.compile(
    "labels?(t[rs]|va)?|lbl|labelmaps?|segs?|segm|segmentations?|masks?|gt|truth|groundtruth|"
    "annotations?|annot|reference|rois?|contours?"
)
_IMAGE = re.compile("ct|images?(t[rs]|va)?|imgs?|volumes?|vol|scans?|dbt")
# Words that indicate a label map only if no other word indicates an image.
_ORGAN = re.compile("liver|tumou?rs?|lesions?|mass")
# Words in the names of DICOM folders that do not distinguish cases.
_ARCHIVE = re.compile("dicom|dcm|series|study|patient")
# Words of splits, in which images and label maps have partners.
_SPLIT = re.compile(
    "(?:images|labels)?(?:(tr|train|training)|(ts|test|testing)|(va|val|validation))"
)
# Words that leave a folder's name one for label maps alone.
_NEUTRAL = re.compile(r"\d+|maps?|ground|manual|part|batch|v")

_NNUNET_FOLDER = re.compile("(images|labels)(tr|ts|va)", re.IGNORECASE)
_LITS = re.compile(r"(test-)?(volume|segmentation)-(\d+)", re.IGNORECASE)
_CHANNEL = re.compile(r"(.+)_(\d{4})")
# Images of more numbers than this are cases rather than channels.
_MOST_CHANNELS = 4

_AMBIGUOUS = "one of several files for one case"
FURTHER_CHANNEL = "a further channel of an image; only channel 0000 is read"
# Files with these suffixes that are not DICOM are reported as damaged.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


# By folder and subfolder: the role that a subfolder's name says, its other words, and its split.
_Roles = dict[Path, dict[Path, tuple[str, str, str]]]


@dataclass(frozen=True)
class _File:
    path: Path
    role: str  # "image" or "label"
    group: tuple[Path, str]  # partners are in the same folder and split
    key: str  # partners have the same key
    words: str  # or else the same words
    name: str  # the case's name, if not named after its folder
    test: bool = False  # images without label maps by design
    by_folder: bool = False  # the role is that of the folder

    def without_channel(self, key: str) -> str:
        """Returns a key without the channel 0000 of nnU-Net's images."""
        first = self.role == "image" and stem_of(self.path).endswith("_0000")
        return key.removesuffix("_0000") if first else key


def paired(
    files: Sequence[Path], dicom: Sequence[Path], source: str, need_labels: bool
) -> tuple[list[Case], list[PassedOver]]:
    """Returns the cases among NIfTI files and DICOM images, and which files belong to none.

    `source` is the name of the data set. Cases may lack an image or a label map. Without
    `need_labels` every image is a case, and ambiguous label maps are none.
    """
    # What the names of each folder's subfolders with files say.
    roles_in: _Roles = defaultdict(dict)
    own_roles: dict[Path, set[bool]] = defaultdict(set)
    for path in files:
        own_roles[path.parent].add(_role(_words(stem_of(path))) == "label")
    for folder in {path.parent for path in (*files, *dicom)}:
        words = _words(folder.name)
        # A folder with label maps among others is not one of images.
        mixed = _role(words) == "image" and len(own_roles[folder]) > 1
        rest = "_".join(_without(words, _LABEL, _IMAGE, _ORGAN))
        roles_in[folder.parent][folder] = ("" if mixed else _role(words), rest, _split(words))
    # Series first: the files in their folders are part of them.
    known = _classified_dicom(files, dicom, roles_in)
    known += [_classified(path, roles_in) for path in files]
    groups: dict[tuple[Path, str], list[_File]] = defaultdict(list)
    for file in known:
        groups[file.group].append(file)
    has_images = any(file.role == "image" for file in known)
    cases: list[Case] = []
    passed: list[PassedOver] = []
    for (folder, _), members in sorted(groups.items()):
        members = _first_channels(members, passed)
        for case, test in _cases_of_group(folder, members, source, need_labels, passed):
            if need_labels and test and case.image_path and not case.label_path:
                passed.append(PassedOver(case.path, "a test image without a label map"))
            elif need_labels and test and has_images and not case.image_path:
                reason = "the label map of a test image that is not there"
                passed.append(PassedOver(case.path, reason))
            else:
                cases.append(case)
    return cases, passed


def stem_of(path: Path) -> str:
    """Returns the name of an image without the suffix of its format."""
    known = (*SUFFIXES, *DICOM_SUFFIXES)
    suffixes = (suffix for suffix in known if path.name.lower().endswith(suffix))
    return path.name[: -len(next(suffixes, "")) or None]


def case_name(image: Path, label: Path | None, name: str | None = None) -> str:
    """Returns an image's name, without nnU-Net's channel unless its label map has that too."""
    stem = stem_of(image)
    name = stem if name is None else name
    return name if label and stem in stem_of(label) else name.removesuffix("_0000")


def channel_of(path: Path) -> tuple[Path, int] | None:
    """Returns the name without channel and the channel of a file named as in nnU-Net."""
    match = _CHANNEL.fullmatch(stem_of(path))
    return (path.parent / match[1], int(match[2])) if match else None


def is_test(path: Path) -> bool:
    """Returns whether a file lies in a folder of test data (imagesTs, labelsTs, Testing/img)."""
    words, above = _words(path.parent.name), _words(path.parent.parent.name)
    if not _role(words) or _without(words, _LABEL, _IMAGE, _SPLIT):
        return False
    return "ts" in (_split(words), _split(above) if len(above) == 1 else "")


def holds_label_maps(folder: Path) -> bool:
    """Returns whether a folder's name says that it holds label maps and nothing else."""
    words = _words(folder.name)
    ours = (_LABEL, _ORGAN, _SPLIT, _NEUTRAL)
    return _role(words) == "label" and words[0] != "test" and not _without(words, *ours)


def is_label_name(path: Path) -> bool:
    """Returns whether a file's own name, or else its folder's, says that it is a label map."""
    return holds_label_maps(path.parent) or _role(_words(stem_of(path))) == "label"


def _classified(path: Path, roles_in: _Roles) -> _File:
    """Classifies a NIfTI file by its folder (images, labels), or by its own words."""
    stem = stem_of(path)
    words, parts = _words(stem), _parts(stem)
    folder_role, group = _place(path.parent, roles_in)
    role = folder_role or _role(words)
    role = role or ("label" if any(map(_ORGAN.fullmatch, parts)) else "image")
    kinds = (_LABEL, _IMAGE, _ORGAN) if role == "label" and not folder_role else (_LABEL, _IMAGE)
    key, joined = ("_".join(_without(each, *kinds)) for each in (parts, words))
    name, lits = key, _lits_name(stem)
    if folder_role:
        key, joined, name = key or stem, joined or stem, stem
    if lits:
        key = name = lits
        role = "label" if _role(words) == "label" else role
    test = lits.startswith("test") or is_test(path)
    return _File(path, role, group, key, joined, name, test=test, by_folder=bool(folder_role))


def _lits_name(stem: str) -> str:
    """Returns the case of a file or folder named as in LiTS; an empty string for other names."""
    match = _LITS.fullmatch(stem)
    return f"{(match[1] or '').lower()}volume-{int(match[3])}" if match else ""


def _place(folder: Path, roles_in: _Roles) -> tuple[str, tuple[Path, str]]:
    """Returns the role of a folder, if that is one of all its files, and the group of these."""
    siblings = roles_in[folder.parent]
    role, rest, split = siblings[folder]
    others = [each for each in siblings.values() if each[0] not in ("", role)]
    alone = _NNUNET_FOLDER.fullmatch(folder.name) or holds_label_maps(folder)
    if not role or not (others or alone):
        return "", (folder, "")
    if rest in {each[1] for each in others}:
        return role, (folder.parent, rest)
    splits = {each[2] for each in others} or {""}
    return role, (folder.parent, "" if split not in splits and "" in splits else split)


def _classified_dicom(
    files: Sequence[Path], dicom: Sequence[Path], roles_in: _Roles
) -> list[_File]:
    """Classifies DICOM images; their label maps lie beside them, inside them, or in a folder above.

    One above (PATIENT/STUDY/SERIES) belongs to the only series below its folder.
    """
    with_nifti = {path.parent for path in files}
    below = Counter(folder for path in dicom for folder in path.parents)
    found = []
    for path in dicom:
        stem, folder = stem_of(path), path.parent
        kinds = (_LABEL, _IMAGE, _ARCHIVE)
        key, words = ("_".join(_without(each, *kinds)) for each in (_parts(stem), _words(stem)))
        name = stem if key else ""
        above = next((each for each in path.parents if each in with_nifti), None)
        role, place = _place(folder, roles_in)
        group = (folder, "")
        if lits := _lits_name(stem):
            key = words = name = lits
        elif path in with_nifti:
            group = (path, "")
        elif role == "image" and any(
            each[0] == "label" for each in roles_in[folder.parent].values()
        ):
            group, key, words, name = place, key or stem, words or stem, stem
        elif above is not None and below[above] == 1:
            group = (above, "")
        found.append(_File(path, "image", group, key, words, name))
    return found


def _first_channels(files: list[_File], passed: list[PassedOver]) -> list[_File]:
    """Returns the files without the further channels of nnU-Net's images (`x_0001` with `x_0000`).

    Names that label maps have too are those of cases. Without label maps, numbers are channels in a
    folder of images, or if several images all have the same.
    """
    channels: dict[Path, dict[int, _File]] = defaultdict(dict)
    labels = {name for f in files if f.role == "label" for name in (stem_of(f.path), f.key)}
    for file in files:
        nifti = file.role == "image" and has_nifti_suffix(file.path)
        channel = channel_of(file.path) if nifti else None
        if channel and labels.isdisjoint((stem_of(file.path), file.key)):
            channels[channel[0]][channel[1]] = file
    alike = len({frozenset(own) for own in channels.values()}) == 1 and len(channels) > 1
    dropped = set()
    for base, own in channels.items():
        few = 0 in own and len(own) <= _MOST_CHANNELS and (alike or own[0].by_folder)
        if few or base.name in labels:
            dropped |= {file for channel, file in own.items() if channel}
    passed += [PassedOver(file.path, FURTHER_CHANNEL) for file in files if file in dropped]
    return [file for file in files if file not in dropped]


def _partners(images: Sequence[_File], labels: Sequence[_File]) -> dict[_File, list[_File]]:
    """Returns each image's label maps: those with its key, else the one with its words.

    Keys and words are compared with and without nnU-Net's channel.
    """
    ways: tuple[Callable[[_File], str], ...] = (
        lambda file: file.key,
        lambda file: file.without_channel(file.key),
        lambda file: file.words,
        lambda file: file.without_channel(file.words),
    )
    found: dict[_File, list[_File]] = {image: [] for image in images}
    taken: set[_File] = set()
    for number, way in enumerate(ways):
        left: dict[str, tuple[list[_File], list[_File]]] = defaultdict(lambda: ([], []))
        for file in (*images, *labels):
            if not found.get(file) and file not in taken:
                left[way(file)][file.role == "label"].append(file)
        for own_images, own_labels in left.values():
            if own_images and (number == 0 or len(own_images) == len(own_labels) == 1):
                found.update(dict.fromkeys(own_images, own_labels))
                taken.update(own_labels)
    return found


def _cases_of_group(
    folder: Path, files: list[_File], source: str, need_labels: bool, passed: list[PassedOver]
) -> Iterator[tuple[Case, bool]]:
    """Yields the cases of a group, and whether they are test data."""
    images = [file for file in files if file.role == "image"]
    labels = [file for file in files if file.role == "label"]
    if len(images) == len(labels) == 1 and not _lits_name(stem_of(images[0].path)):
        paths = images[0].path, labels[0].path
        if folder in (path.parent for path in paths):
            # One image and one label map in a folder are a case, whatever their names.
            yield Case(safe_id(folder_name(folder)), *paths, source), False
            return
    partners = _partners(images, labels)
    by_key: dict[str, tuple[list[_File], list[_File]]] = defaultdict(lambda: ([], []))
    for file in images:
        by_key[file.key][0].append(file)
        by_key[file.key][1][:] = partners[file]
    taken = {file for own in partners.values() for file in own}
    for file in labels:
        if file not in taken:
            by_key[file.key][1].append(file)
    for _, (own_images, own_labels) in sorted(by_key.items()):
        first = (own_images or own_labels)[0]
        image = own_images[0].path if own_images else None
        label = own_labels[0].path if own_labels else None
        name = first.name
        if image and (first.by_folder or (own_labels and own_labels[0].key != first.key)):
            name = case_name(image, label, first.name)
        case_id = safe_id(name or folder_name(folder))
        if len(own_images) <= 1 and len(own_labels) <= 1:
            yield Case(case_id, image, label, source), first.test
        elif need_labels:
            names = ", ".join(file.path.name for file in (*own_images, *own_labels))
            problem = str(InputError(folder, "one image and one label map", names))
            yield Case(case_id, image, label, source, problem), False
            passed += [PassedOver(f.path, _AMBIGUOUS) for f in (*own_images[1:], *own_labels[1:])]
        else:
            for file in own_images:
                own_id = safe_id(stem_of(file.path)) if len(own_images) > 1 else case_id
                yield Case(own_id, file.path, None, source), False
            passed += [PassedOver(file.path, _AMBIGUOUS) for file in own_labels]


def _role(words: Sequence[str]) -> str:
    """Returns "label", "image", or an empty string if the words indicate neither."""
    if any(map(_LABEL.fullmatch, words)):
        return "label"
    return "image" if any(map(_IMAGE.fullmatch, words)) else ""


def _split(words: Sequence[str]) -> str:
    """Returns "tr", "ts" or "va" if a word names a split, else an empty string."""
    match = next(filter(None, map(_SPLIT.fullmatch, words)), None)
    return ("", "tr", "ts", "va")[match.lastindex or 0] if match else ""


def _parts(name: str) -> list[str]:
    """Returns the runs of letters and digits of a name, in lower case."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", name).lower())


def _words(name: str) -> list[str]:
    """Returns the words of a name in lower case: numbers, and letters up to the next capital."""
    words = []
    for run in re.findall(r"\d+|[^\W\d_]+", unicodedata.normalize("NFC", name)):
        # Other scripts have letters that are neither capitals nor small.
        kinds = "".join("u" if c.isupper() else "l" for c in run)
        found = re.finditer(r"u?l+|u+(?!l)", kinds)
        words += [run[match.start() : match.end()].lower() for match in found]
    return words


def _without(words: Sequence[str], *kinds: re.Pattern[str]) -> list[str]:
    return [word for word in words if not any(kind.fullmatch(word) for kind in kinds)]
