"""The layouts of data sets: each is a reader that turns files below an input folder into cases."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocessing.datasets import bcs_dbt, pairing
from preprocessing.datasets.case import Case, PassedOver, folder_name, safe_id
from preprocessing.datasets.dataset_json import DATASET_FILE, MISSING, Listing, read_listing
from preprocessing.dicom.header import is_dicom
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import has_nifti_suffix

# 3D-IRCADb's folders: the scan, one folder of masks per structure, and copies of both.
IRCADB_IMAGE, IRCADB_MASKS = "PATIENT_DICOM", "MASKS_DICOM"
IRCADB_OTHERS = {
    IRCADB_MASKS: "masks, not images",
    "LABELLED_DICOM": "masks of 3D-IRCADb once more, in one series",
    "MESHES_VTK": "meshes of 3D-IRCADb",
}
NO_IMAGE = "a label map, not an image"


@dataclass(frozen=True)
class DicomImage:
    """A volume in DICOM, or a segmentation (SEG)."""

    path: Path  # a folder of slices, a multi-frame file or a segmentation
    identifiers: tuple[str, ...]  # see `deidentify.header_identifiers`
    pseudonym: str  # a case id from the SeriesInstanceUID (for a file, its SOPInstanceUID)
    # Its SeriesInstanceUID; of a segmentation those of the series that it refers to.
    series_uids: frozenset[str] = frozenset()
    patient: str = ""  # pseudonym of the patient, empty if unknown


@dataclass
class Found:
    """What lies below an input folder, and what the layouts have made of it so far."""

    source: str  # name of the data set
    need_labels: bool
    folders: dict[Path, list[str]] = field(default_factory=dict)  # names of files
    files: list[Path] = field(default_factory=list)  # NIfTI, part of no case yet
    images: list[DicomImage] = field(default_factory=list)  # part of no case yet
    dicom: list[DicomImage] = field(default_factory=list)  # all images
    segmentations: list[DicomImage] = field(default_factory=list)
    ircadb: list[Path] = field(default_factory=list)  # folders of `IRCADB_OTHERS`
    cases: list[Case] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    # Why a folder's dataset.json or tables can't be read.
    damaged_lists: dict[Path, str] = field(default_factory=dict)
    damaged_tables: dict[Path, str] = field(default_factory=dict)

    def pass_over(self, path: Path, reason: str, identifiers: Iterable[str] = ()) -> None:
        """Records that a file or folder is part of no case; `identifiers` as those of cases."""
        self.passed_over.append(PassedOver(path, reason, tuple(identifiers)))

    def take_files(self, folder: Path) -> list[Path]:
        """Removes and returns the NIfTI files below a folder."""
        own = [path for path in self.files if folder in path.parents]
        self.files = [path for path in self.files if folder not in path.parents]
        return own


def read_tables(found: Found) -> None:
    """BCS-DBT: folders with a table of boxes. Their DICOM files are found by these tables alone."""
    for folder in list(found.folders):
        names = found.folders.get(folder, ())
        if not any(name.lower().endswith(".csv") for name in names):
            continue
        try:
            tables = bcs_dbt.read_tables(folder)
        except InputError as error:
            found.damaged_tables[folder] = str(error)
            found.pass_over(Path(error.where), f"expected {error.expected}, found {error.found}")
            continue
        if tables is None:
            continue
        files = found.take_files(folder)
        below = [each for each in found.folders if each == folder or folder in each.parents]
        files += [
            each / name
            for each in below
            for name in found.folders.pop(each)
            if not has_nifti_suffix(name) and name != "DICOMDIR" and _may_be_dicom(each / name)
        ]
        nifti = [path for path in files if has_nifti_suffix(path)]
        cases: list[Case] = []
        try:
            cases = bcs_dbt.cases_of_tables(tables, nifti, need_labels=found.need_labels)
        except InputError:
            found.pass_over(folder, "its tables name no volume that is there")
        found.cases += cases
        used = {path for case in cases for path in (case.image_path, case.label_path)}
        patients = {value for key in tables.rows for value in key[:2]}
        for path in files:
            if path not in used:
                found.pass_over(path, "no image of a row of the tables", patients)


def _may_be_dicom(path: Path) -> bool:
    return path.name.lower().endswith(pairing.DICOM_SUFFIXES) or is_dicom(path)


def _dataset_json(found: Found) -> None:
    """Medical Segmentation Decathlon, nnU-Net v1 and v2, AMOS: folders with a dataset.json."""
    listings = {}
    for folder, names in found.folders.items():
        if DATASET_FILE in names:
            try:
                listings[folder] = read_listing(folder, found.source)
            except InputError as error:
                found.damaged_lists[folder] = str(error)
                reason = f"expected {error.expected}, found {error.found}"
                found.pass_over(folder / DATASET_FILE, reason)
    # A folder's own list comes before one further up.
    for folder in sorted(listings, key=lambda each: len(each.parts), reverse=True):
        listing = listings[folder]
        if listing is not None:
            cases = _listed_cases(found, folder, listing, found.take_files(folder))
            cases = [replace(case, label_names=listing.label_names) for case in cases]
            if found.need_labels:
                problem = listing.label_problem
                cases = [replace(case, problem=case.problem or problem) for case in cases]
            found.cases += cases


def _listed_cases(
    found: Found, folder: Path, listing: Listing, files: Sequence[Path]
) -> list[Case]:
    """Returns the cases in a dataset.json, and those of the other files below its folder."""
    source, need_labels = found.source, found.need_labels
    known: set[Path | None] = set(listing.channels)
    cases = []
    for case in listing.cases:
        if not need_labels:
            if not os.path.exists(case.image_path or ""):
                found.pass_over(case.path, MISSING)
                continue
            there = os.path.exists(case.label_path or "")
            case = replace(case, label_path=case.label_path if there else None, problem="")
        cases.append(case)
        known |= {case.image_path, case.label_path}
    for image in listing.test_images:
        if not os.path.exists(image):
            found.pass_over(image, MISSING)
        elif not need_labels:
            cases.append(Case(safe_id(pairing.case_name(image, None)), image, None, source))
            known.add(image)
    channels = {path: pairing.channel_of(path) for path in {*files, *known} if path}
    first = {own[0] for path, own in channels.items() if path in known and own and own[1] == 0}
    further = [p for p in files if p not in known and (own := channels[p]) and own[0] in first]
    for path in (*listing.channels, *further):
        found.pass_over(path, pairing.FURTHER_CHANNEL)
    known.update(further)
    found.images = [image for image in found.images if image.path not in known]
    left = [path for path in files if path not in known]
    others, passed = pairing.paired(left, [], source, need_labels)
    found.passed_over += passed
    for case in others:
        listed = not listing.is_complete or case.image_path in listing.test_images
        if need_labels and not listed and pairing.is_test(case.path):
            for path in filter(None, (case.image_path, case.label_path)):
                found.pass_over(path, f"test data that {DATASET_FILE} does not list")
            continue
        if need_labels and not listed:
            expected = f"this case in {folder / DATASET_FILE}"
            case = replace(case, problem=str(InputError(case.path, expected, "none")))
        cases.append(case)
    earlier = sum(case.path == Path(source) for case in found.cases)
    for number, problem in enumerate(listing.problems, start=earlier + 1):
        if need_labels:
            cases.append(Case(f"{source}_entry-{number}", None, None, source, problem))
        else:
            place = folder / DATASET_FILE
            found.pass_over(place, problem.removeprefix(f"{place}: "))
    return cases


def _ircadb(found: Found) -> None:
    """3D-IRCADb: PATIENT_DICOM, MASKS_DICOM and copies; unpackers may nest equal names."""
    masks_of = {path.parent: path for path in found.ircadb if path.name == IRCADB_MASKS}
    for image in found.images:
        # The input may be PATIENT_DICOM itself.
        masks = image.path.with_name(IRCADB_MASKS)
        if image.path.name == IRCADB_IMAGE and os.path.isdir(masks):
            masks_of.setdefault(image.path.parent, masks)
    for case_folder, masks in masks_of.items():
        while os.path.isdir(masks / IRCADB_MASKS):
            masks /= IRCADB_MASKS
        scan = case_folder / IRCADB_IMAGE
        own = [image for image in found.images if scan in (image.path, *image.path.parents)]
        if len(own) == 1 or (found.need_labels and not own):
            image_path = own[0].path if own else None
            case_id = safe_id(folder_name(case_folder))
            found.cases.append(Case(case_id, image_path, masks, found.source))
            found.images = [image for image in found.images if image not in own]
        else:
            found.pass_over(masks, IRCADB_OTHERS[IRCADB_MASKS])
    for path in found.ircadb:
        if path.name != IRCADB_MASKS:
            found.pass_over(path, IRCADB_OTHERS[path.name])


def _mask_folders(found: Found) -> None:
    """TotalSegmentator: an image, and a folder beside it with one NIfTI mask per structure."""
    nifti, series = (defaultdict[Path, list[Path]](list) for _ in range(2))
    for path in found.files:
        nifti[path.parent].append(path)
    for image in found.images:
        series[image.path.parent].append(image.path)
    taken: set[Path] = set()
    for folder, masks in list(nifti.items()):
        if not pairing.holds_label_maps(folder):
            continue
        own = [path for path in nifti[folder.parent] if not pairing.is_label_name(path)]
        several = folder.name.lower() == "segmentations" or len(masks) > 1
        if several and len(own) + len(series[folder.parent]) == 1:
            cases, _ = pairing.paired([*own, *masks], series[folder.parent], found.source, False)
            images = [case for case in cases if case.image_path]
            if images and not any(case.label_path for case in images):
                found.cases += [replace(case, label_path=folder) for case in images]
                taken |= {folder, *own, *masks, *series[folder.parent]}
    found.files = [path for path in found.files if path not in taken]
    found.images = [i for i in found.images if taken.isdisjoint((i.path, i.path.parent))]


def _pairs(found: Found) -> None:
    """LiTS, CT-ORG, AMOS, BTCV, AbdomenCT-1K, nnU-Net without its list, pairs, folders per case."""
    images = []
    for image in found.images:
        above = image.path.parent
        own = image.path.with_name(pairing.stem_of(image.path))
        if any(pairing.holds_label_maps(p) for p in (own, above) if p == own or p in found.folders):
            found.pass_over(image.path, "its name says label map, which DICOM images are not")
        else:
            images.append(image.path)
    cases, passed = pairing.paired(found.files, images, found.source, found.need_labels)
    found.cases += cases
    found.passed_over += passed
    found.files, found.images = [], []


def _segmentations(found: Found) -> None:
    """DICOM SEG: it belongs to the series that it refers to, or else that it lies in or beside."""
    places = {case.image_path: index for index, case in enumerate(found.cases)}
    beside: dict[Path, list[Path]] = defaultdict(list)
    by_uid: dict[str, list[Path]] = defaultdict(list)
    for each in found.dicom:
        beside[each.path.parent].append(each.path)
        for uid in each.series_uids:
            by_uid[uid].append(each.path)
    own: dict[Path | None, list[Path]] = defaultdict(list)
    for segmentation in found.segmentations:
        folder, uids = segmentation.path.parent, segmentation.series_uids
        named = [path for uid in uids for path in by_uid.get(uid, ())]
        inside = [path for path in beside.get(folder.parent, ()) if path == folder]
        choices = [inside, beside.get(folder, []), beside.get(folder.parent, [])]
        if uids:
            choices = [*([path for path in paths if path in named] for paths in choices), named]
        image = next((paths[0] for paths in choices if len(paths) == 1), None)
        own[image if image in places else None].append(segmentation.path)
    for image, paths in own.items():
        if image is None:
            for path in paths:
                if found.need_labels and not any(case.image_path for case in found.cases):
                    case_id = safe_id(pairing.stem_of(path))
                    found.cases.append(Case(case_id, None, path, found.source))
                else:
                    found.pass_over(path, "a DICOM segmentation of none of the images here")
            continue
        case = found.cases[places[image]]
        if case.label_path is not None or len(paths) > 1:
            for path in paths:
                found.pass_over(
                    path, "a DICOM segmentation, one of several label maps of its image"
                )
        if case.label_path is None and len(paths) == 1:
            found.cases[places[image]] = replace(case, label_path=paths[0])
        elif case.label_path is None and found.need_labels:
            problem = InputError(image, "one label map", f"{len(paths)} DICOM segmentations")
            found.cases[places[image]] = replace(case, problem=str(problem))


# Tried in this order; each takes what is its own from `Found`.
LAYOUTS: tuple[Callable[[Found], None], ...] = (
    _dataset_json,
    _ircadb,
    _mask_folders,
    _pairs,
    _segmentations,
)
