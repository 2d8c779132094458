"""Reads BCS-DBT: tables of lesion boxes, and the tomosynthesis volume of each row.

A data set is a folder with `boxes.csv` and optionally `labels.csv` and `paths.csv`, or the public
names of these tables (`BCS-DBT-boxes-train-v2.csv`, ...). The volume of a row is found

- by paths.csv, if there is one: its descriptive or classic path below the folder (DICOM or NIfTI);
- else, NIfTI only, by its path, which contains the PatientID, plus StudyUID and View if the patient
  has several volumes (`DBT-P00013_rcc.nii.gz`, `DBT-P00013/rcc.nii.gz`), and no others, or the case id;
- else by `positive` or `negative` in its name, if only one row with, or without, boxes is left.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocessing.datasets.case import Case, folder_name, safe_id
from preprocessing.datasets.pairing import paired
from preprocessing.dicom.deidentify import patient_pseudonym, pseudonym
from preprocessing.errors import InputError
from preprocessing.files import write_csv
from preprocessing.volumes.lesions import LesionBox

VOLUME_COLUMNS = ("PatientID", "StudyUID", "View")
BOX_COLUMNS = (
    *VOLUME_COLUMNS,
    *("Subject", "Slice", "X", "Y", "Width", "Height", "Class", "AD", "VolumeSlices"),
)
OUTCOMES = ("Normal", "Actionable", "Benign", "Cancer")
LABEL_COLUMNS = (*VOLUME_COLUMNS, *OUTCOMES)
PATH_COLUMNS = ("descriptive_path", "classic_path")
LESION_CLASSES = ("benign", "cancer")
_BOX_NUMBERS = ("X", "Y", "Width", "Height", "Slice", "VolumeSlices")

# A study and a view in the words of a path.
_STUDY, _VIEW = re.compile(r"-dbt-s\d+-"), re.compile(r"-[lr](cc|mlo)\d*-")

# PatientID, StudyUID and View of one volume.
VolumeKey = tuple[str, str, str]


@dataclass
class _Row:
    """What the tables say about one volume."""

    where: str
    boxes: list[LesionBox] = field(default_factory=list)
    outcomes: dict[str, bool] | None = None
    paths: list[str] = field(default_factory=list)
    problem: str = ""

    def add_problem(self, where: str, expected: str, found: object) -> None:
        """Records a problem, unless there is one already."""
        self.problem = self.problem or str(InputError(where, expected, found))


@dataclass(frozen=True)
class Tables:
    """The tables in one folder; without a labels table, volumes without a box are normal."""

    folder: Path
    rows: dict[VolumeKey, _Row]
    has_labels: bool
    has_paths: bool


def dbt_case_id(patient_id: str, study_uid: str, view: str) -> str:
    """Returns the case id of a row: `dbt-` and 12 hexadecimal digits, a pseudonym.

    They begin the SHA-256 of "PatientID/StudyUID/View" (View in lower case), so that the owner of
    the tables can match cases and rows.
    """
    return pseudonym("dbt", f"{patient_id.strip()}/{study_uid.strip()}/{view.strip().lower()}")


def read_tables(folder: Path, paths: Sequence[Path] | None = None) -> Tables | None:
    """Reads the tables of a folder, or only those at `paths`; None if there is no boxes table.

    Raises InputError, with file and row, for a table that is not CSV or lacks a column.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.csv")) if paths is None else paths:
        kind = re.search(r"(?:^|[^a-z])(boxes|labels|paths)(?:[^a-z]|$)", path.stem.lower())
        if kind and not path.name.startswith(".") and os.path.isfile(path):
            files[kind[1]].append(path)
    if not files["boxes"]:
        return None
    rows: dict[VolumeKey, _Row] = {}

    def row_of(line: dict[str, str], where: str) -> _Row:
        return rows.setdefault(volume_key(line, where), _Row(where))

    for path in files["labels"]:
        for where, line in read_rows(path, LABEL_COLUMNS):
            _add_outcomes(row_of(line, where), line, where)
    for path in files["boxes"]:
        for where, line in read_rows(path, (*VOLUME_COLUMNS, *_BOX_NUMBERS, "Class")):
            _add_box(row_of(line, where), line, where)
    for path in files["paths"]:
        for where, line in read_rows(path, (*VOLUME_COLUMNS, PATH_COLUMNS[0])):
            found = (line.get(column) for column in PATH_COLUMNS)
            row_of(line, where).paths += [each for each in found if each]
    return Tables(folder, rows, bool(files["labels"]), bool(files["paths"]))


def cases_of_tables(tables: Tables, files: Sequence[Path], *, need_labels: bool) -> list[Case]:
    """Returns a case for every row of the tables, and for every NIfTI image without a row.

    Masks among the NIfTI files become label maps. Without `need_labels`, rows without a volume and
    problems are ignored. Raises InputError if there are no such cases.
    """
    source = safe_id(folder_name(tables.folder))
    pairs = [case for case in paired(files, [], source, False)[0] if case.image_path is not None]
    masks = {case.path: case.label_path for case in pairs}
    found = _by_path(tables) if tables.has_paths else _by_name(tables, list(masks))
    owners = Counter(path for paths in found.values() for path in paths)
    cases = []
    for key, row in tables.rows.items():
        paths = found.get(key, [])
        problem = row.problem or _annotation_problem(row, tables)
        if len(paths) > 1:
            problem = f"{row.where}: expected one volume, found {len(paths)} with this row's names"
        elif not paths:
            problem = f"{row.where}: expected a volume for this row, found none"
        elif owners[paths[0]] > 1:
            problem = f"{row.where}: expected a volume of its own, found another row's"
        image = paths[0] if paths else None
        label = masks.get(image) if image else None
        case = Case(dbt_case_id(*key), image, label, source, problem if need_labels else "")
        patient = patient_pseudonym(key[0])
        case = replace(case, identifiers=key[:2], patient=patient, view=key[2])
        cases.append(replace(case, boxes=tuple(row.boxes)))
    patients = {key[0]: _words(key[0]) for key in tables.rows}
    for path in sorted(masks.keys() - owners.keys()):
        case_id = dbt_case_id("", "", path.relative_to(tables.folder).as_posix())
        problem = ""
        if need_labels and (tables.has_labels or tables.has_paths):
            problem = f"{path.name}: expected a row of the tables that names it, found none"
        name = _words(path.relative_to(tables.folder).as_posix())
        named = tuple(patient for patient, words in patients.items() if words in name)
        patient = patient_pseudonym(named[0]) if len(named) == 1 else ""
        case = Case(case_id, path, masks[path], source, problem, boxes=())
        cases.append(replace(case, identifiers=named, patient=patient))
    cases = [case for case in cases if need_labels or case.image_path is not None]
    if not cases:
        raise InputError(tables.folder, "volumes that its tables name", "none")
    return cases


def rows_of_volume(
    key: VolumeKey, boxes: Sequence[LesionBox], subject: object
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Returns a volume's rows of the boxes table, and its row of the labels table.

    The outcome is the worst class of its boxes, or normal.
    """
    names = dict(zip(VOLUME_COLUMNS, key, strict=True))
    rows = []
    for box in boxes:
        place = (box.slice_index, box.x, box.y, box.width, box.height)
        values = (*key, subject, *place, box.lesion_class, 0, box.volume_slices)
        rows.append(dict(zip(BOX_COLUMNS, values, strict=True)))
    classes = {box.lesion_class for box in boxes}
    outcome = next((each for each in reversed(LESION_CLASSES) if each in classes), "normal")
    return rows, {**names, **{each: int(each.lower() == outcome) for each in OUTCOMES}}


def replace_rows(
    path: Path, columns: Sequence[str], column: str, value: str, rows: Sequence[dict[str, object]]
) -> None:
    """Writes rows to a table, atomically, replacing those with `value` in `column`."""
    lines = [line for _, line in read_rows(path, columns)] if path.exists() else []
    write_csv(path, columns, [*(line for line in lines if line[column] != value), *rows])


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields each row of a table with its location, "boxes.csv, row 2"; row 1 is the header.

    Raises InputError for other files than CSV, a missing column, or missing or further values.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in columns if column not in names]
            if missing:
                found = f"none named {', '.join(missing)}"
                raise InputError(f"{path}, row 1", f"columns {', '.join(columns)}", found)
            reader.fieldnames = names
            for number, line in enumerate(reader, start=2):
                where = f"{path.name}, row {number}"
                if None in line or None in line.values():
                    raise InputError(path.parent / where, f"{len(names)} values", "more or fewer")
                yield where, {name: value.strip() for name, value in line.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(path, "a CSV table in UTF-8", error) from None
    except OSError as error:
        raise InputError(path, "a readable file", error.strerror) from None


def volume_key(line: dict[str, str], where: str) -> VolumeKey:
    """Returns the volume of a row; raises InputError if PatientID, StudyUID or View is empty."""
    empty = [column for column in VOLUME_COLUMNS if not line[column]]
    if empty:
        raise InputError(where, f"a {' and a '.join(VOLUME_COLUMNS)}", f"no {', '.join(empty)}")
    return line["PatientID"], line["StudyUID"], line["View"].lower()


def _add_outcomes(row: _Row, line: dict[str, str], where: str) -> None:
    values = {name: line[name] for name in OUTCOMES}
    if not set(values.values()) <= {"0", "1"}:
        row.add_problem(where, f"0 or 1 in {', '.join(OUTCOMES)}", values)
        return
    outcomes = {name: value == "1" for name, value in values.items()}
    if row.outcomes not in (None, outcomes):
        row.add_problem(where, "one row of labels per volume", f"{row.where} too")
    row.outcomes = outcomes


def _add_box(row: _Row, line: dict[str, str], where: str) -> None:
    numbers: dict[str, int] = {}
    for column in _BOX_NUMBERS:
        if not re.fullmatch(r"-?\d{1,9}(\.0*)?", line[column]):
            row.add_problem(where, f"an integer in {column}", repr(line[column]))
            return
        numbers[column] = int(line[column].partition(".")[0])
    lesion_class = line["Class"].lower()
    if lesion_class not in LESION_CLASSES:
        row.add_problem(where, f"a Class among {', '.join(LESION_CLASSES)}", repr(line["Class"]))
        return
    x, y, width, height, index, slices = (numbers[column] for column in _BOX_NUMBERS)
    if not 0 <= index < slices:
        row.add_problem(where, f"a Slice from 0 to below VolumeSlices {slices}", index)
    row.boxes.append(LesionBox(x, y, width, height, index, slices, lesion_class, where))


def _annotation_problem(row: _Row, tables: Tables) -> str:
    """Returns how the labels of a volume contradict its boxes; empty if they do not."""
    if row.outcomes is None:
        unknown = tables.has_labels and not row.boxes
        text = f"{row.where}: expected a row of the labels table for this volume, found none"
        return text if unknown else ""
    biopsied = row.outcomes["Benign"] or row.outcomes["Cancer"]
    if biopsied and not row.boxes:
        # Training would treat its lesion as background.
        return f"{row.where}: expected a box for a volume labelled Benign or Cancer, found none"
    if row.boxes and not biopsied:
        return f"{row.boxes[0].where}: expected no box in a volume of {row.where}, found one"
    return ""


def _by_path(tables: Tables) -> dict[VolumeKey, list[Path]]:
    """Returns the file of each volume according to the paths table."""
    found: dict[VolumeKey, list[Path]] = {}
    for key, row in tables.rows.items():
        for text in row.paths:
            inside = not Path(text).is_absolute() and ".." not in Path(text).parts
            # Unlike Path.is_file, this accepts any text, for example names that are too long.
            if inside and os.path.isfile(tables.folder / text):
                found.setdefault(key, [tables.folder / text])
    return found


def _by_name(tables: Tables, images: Sequence[Path]) -> dict[VolumeKey, list[Path]]:
    """Returns the files of each volume according to their paths."""
    found: dict[VolumeKey, list[Path]] = defaultdict(list)
    by_id = {dbt_case_id(*key): key for key in tables.rows}
    words = {key: [_words(part) for part in key] for key in tables.rows}
    left = []
    for path in images:
        name = _words(path.relative_to(tables.folder).as_posix())
        keys = [by_id[each] for each in re.findall(r"dbt-[0-9a-f]{12}", name) if each in by_id]
        if not keys:
            keys = [key for key in tables.rows if words[key][0] in name]
            for part, other in ((1, _STUDY), (2, _VIEW)):
                fitting = [key for key in keys if words[key][part] in name]
                # A path may leave study and view out, but not name others.
                keys = fitting or ([] if other.search(name) else keys)
        if len(keys) == 1:
            found[keys[0]].append(path)
        elif not keys:
            left.append(path)
    for word, has_boxes in (("positive", True), ("negative", False)):
        named = [path for path in left if f"-{word}-" in _words(path.name)]
        free = tables.rows.keys() - found.keys()
        keys = [key for key in free if bool(tables.rows[key].boxes) == has_boxes]
        if len(named) == len(keys) == 1:
            found[keys[0]] = named
    return found


def _words(text: str) -> str:
    """Returns the words of a string in lower case, with one `-` before and after each."""
    return "-" + "".join(f"{word}-" for word in re.split(r"[^a-z0-9]+", text.lower()) if word)
