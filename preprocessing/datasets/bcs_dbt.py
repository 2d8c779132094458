"""BCS-DBT's tables: which tomosynthesis volume has which lesion boxes, and the names of its cases.

A data set is a folder with `boxes.csv` and, if there are any, `labels.csv` and `paths.csv`; the public
set's own names (`BCS-DBT-boxes-train-v2.csv`, ...) say the same. Volumes are found

- by paths.csv: its descriptive or its classic path, from the folder on (DICOM or NIfTI);
- else, NIfTI alone, by their path, which carries the row's PatientID, and StudyUID and View where one
  patient has several volumes (`DBT-P00013_rcc.nii.gz`, `DBT-P00013/rcc.nii.gz`), or the case id;
- else by the words `positive` and `negative` in their names, if one row with boxes, or one without,
  is all that is left.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.files import atomic_write
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
# Subject and AD (architectural distortion) are read by nobody here.
_NEEDED_OF_BOXES = tuple(name for name in BOX_COLUMNS if name not in ("Subject", "AD"))

# PatientID, StudyUID and View of one volume.
VolumeKey = tuple[str, str, str]


@dataclass(frozen=True)
class DBTVolume:
    """A volume that the tables name, or a NIfTI file beside them.

    Attributes:
      case_id: see `dbt_case_id`.
      image_path: the volume; None where there is no such file.
      view: "lcc", "rcc", "lmlo" or "rmlo"; whatever the table says, in small letters.
      boxes: its lesions; none in a volume without any.
      problem: why it can't be used with its annotation, in one line; empty if it can.
      identifiers: PatientID and StudyUID; they never leave the process.
    """

    case_id: str
    image_path: Path | None
    view: str = ""
    boxes: tuple[LesionBox, ...] = ()
    problem: str = ""
    identifiers: tuple[str, ...] = ()


@dataclass
class _Row:
    """What the tables say about one volume."""

    where: str
    boxes: list[LesionBox] = field(default_factory=list)
    outcomes: dict[str, bool] | None = None
    paths: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Tables:
    """The tables of one data set.

    Attributes:
      folder: where they lie.
      rows: what they say about each volume.
      has_labels: whether there is a labels table; without one, volumes without a box are normal.
      has_paths: whether there is a paths table.
    """

    folder: Path
    rows: dict[VolumeKey, _Row]
    has_labels: bool
    has_paths: bool


def dbt_case_id(patient_id: str, study_uid: str, view: str) -> str:
    """Returns a case id that doesn't lead back to the patient: `dbt-` and 12 hexadecimal digits.

    They begin the SHA-256 of "PatientID/StudyUID/View" (View in small letters), so whoever has the
    tables can find the case of a row, and the row of a case.
    """
    text = f"{patient_id.strip()}/{study_uid.strip()}/{view.strip().lower()}"
    return f"dbt-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_tables(folder: Path, paths: Sequence[Path] | None = None) -> Tables | None:
    """Reads the tables of a folder; None where it has no boxes table.

    Args:
      folder: where they lie.
      paths: the tables to read; all of the folder if None. Their names say what they hold.

    Raises:
      InputError: a table that is no CSV, or lacks a column; names file and row.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.csv")) if paths is None else paths:
        kind = re.search(r"(?:^|[^a-z])(boxes|labels|paths)(?:[^a-z]|$)", path.stem.lower())
        if kind and not path.name.startswith(".") and path.is_file():
            files[kind[1]].append(path)
    if not files["boxes"]:
        return None
    rows: dict[VolumeKey, _Row] = {}
    for path in files["labels"]:
        for where, line in read_rows(path, LABEL_COLUMNS):
            _add_outcomes(_row(rows, line, where), line, where)
    for path in files["boxes"]:
        for where, line in read_rows(path, _NEEDED_OF_BOXES):
            _add_box(_row(rows, line, where), line, where)
    for path in files["paths"]:
        for where, line in read_rows(path, (*VOLUME_COLUMNS, PATH_COLUMNS[0])):
            found = (line.get(column) for column in PATH_COLUMNS)
            _row(rows, line, where).paths += [path for path in found if path]
    return Tables(folder, rows, bool(files["labels"]), bool(files["paths"]))


def find_volumes(tables: Tables, images: Sequence[Path]) -> list[DBTVolume]:
    """Returns every volume that the tables name, and every image that they don't, in stable order.

    Args:
      tables: of the data set.
      images: the NIfTI images below its folder.
    """
    places = _by_path(tables) if tables.has_paths else _by_name(tables, images)
    owners: dict[Path, list[VolumeKey]] = defaultdict(list)
    for key, paths in places.items():
        for path in paths:
            owners[path].append(key)
    volumes = []
    for key, row in tables.rows.items():
        paths = places.get(key, [])
        problem = row.problem or _annotation_problem(row, tables)
        if len(paths) > 1:
            problem = f"{row.where}: expected one volume, found {len(paths)} with this row's names"
        elif not paths:
            problem = f"{row.where}: expected a volume for this row, found none"
        elif len(owners[paths[0]]) > 1:
            problem = f"{row.where}: expected a volume of its own, found another row's"
        path = paths[0] if paths else None
        volumes.append(
            DBTVolume(dbt_case_id(*key), path, key[2], tuple(row.boxes), problem, key[:2])
        )
    for path in sorted(set(images) - owners.keys()):
        name = path.relative_to(tables.folder).as_posix()
        problem = ""
        if tables.has_labels or tables.has_paths:
            problem = f"{path.name}: expected a row of the tables that names it, found none"
        volumes.append(DBTVolume(dbt_case_id("", "", name), path, problem=problem))
    return volumes


def replace_rows(
    path: Path, columns: Sequence[str], column: str, value: str, rows: Sequence[dict[str, object]]
) -> None:
    """Writes rows to a table in the place of those that have `value` in `column`; the others stay."""
    lines = [line for _, line in read_rows(path, columns)] if path.exists() else []
    kept = [line for line in lines if line[column] != value]
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields each row of a table with its place, "boxes.csv, row 2"; row 1 is the header.

    Raises:
      InputError: no CSV, a column of `columns` missing, or a row with more or fewer values.
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
                    expected = f"{len(names)} values"
                    raise InputError(f"{path.parent / where}", expected, "more or fewer")
                yield where, {name: value.strip() for name, value in line.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(path, "a CSV table in UTF-8", error) from None


def _row(rows: dict[VolumeKey, _Row], line: dict[str, str], where: str) -> _Row:
    empty = [column for column in VOLUME_COLUMNS if not line[column]]
    if empty:
        raise InputError(where, f"a {' and a '.join(VOLUME_COLUMNS)}", f"no {', '.join(empty)}")
    key = (line["PatientID"], line["StudyUID"], line["View"].lower())
    return rows.setdefault(key, _Row(where))


def _add_outcomes(row: _Row, line: dict[str, str], where: str) -> None:
    values = {name: line[name] for name in OUTCOMES}
    if not set(values.values()) <= {"0", "1"}:
        found = ", ".join(f"{name} {value!r}" for name, value in values.items())
        row.problem = row.problem or f"{where}: expected 0 or 1 in {', '.join(OUTCOMES)}, {found}"
        return
    outcomes = {name: value == "1" for name, value in values.items()}
    if row.outcomes not in (None, outcomes):
        row.problem = f"{where}: expected one row of labels a volume, found {row.where} too"
    row.outcomes = outcomes


def _add_box(row: _Row, line: dict[str, str], where: str) -> None:
    numbers: dict[str, int] = {}
    for column in ("Slice", "X", "Y", "Width", "Height", "VolumeSlices"):
        if not re.fullmatch(r"-?\d{1,9}(\.0*)?", line[column]):
            row.problem = row.problem or (
                f"{where}: expected a whole number in {column}, found {line[column]!r}"
            )
            return
        numbers[column] = int(line[column].partition(".")[0])
    lesion_class = line["Class"].lower()
    if lesion_class not in LESION_CLASSES:
        row.problem = row.problem or (
            f"{where}: expected a Class among {', '.join(LESION_CLASSES)}, found {line['Class']!r}"
        )
        return
    if not 0 <= numbers["Slice"] < numbers["VolumeSlices"]:
        row.problem = row.problem or (
            f"{where}: expected a Slice from 0 to below VolumeSlices {numbers['VolumeSlices']}, "
            f"found {numbers['Slice']}"
        )
    box = LesionBox(
        x=numbers["X"],
        y=numbers["Y"],
        width=numbers["Width"],
        height=numbers["Height"],
        slice_index=numbers["Slice"],
        volume_slices=numbers["VolumeSlices"],
        lesion_class=lesion_class,
        where=where,
    )
    row.boxes.append(box)


def _annotation_problem(row: _Row, tables: Tables) -> str:
    """Returns what is wrong between a volume's labels and its boxes."""
    if row.outcomes is None:
        if row.boxes or not tables.has_labels:
            return ""
        return f"{row.where}: expected a row of the labels table for this volume, found none"
    biopsied = row.outcomes["Benign"] or row.outcomes["Cancer"]
    if biopsied and not row.boxes:
        # Its lesion would be taught as background.
        return f"{row.where}: expected a box for a volume labelled Benign or Cancer, found none"
    if row.boxes and not biopsied:
        return f"{row.boxes[0].where}: expected no box in a volume of {row.where}, found one"
    return ""


def _by_path(tables: Tables) -> dict[VolumeKey, list[Path]]:
    """Returns each volume's file by the paths table."""
    places = {}
    for key, row in tables.rows.items():
        for text in row.paths:
            path = tables.folder / text
            inside = not Path(text).is_absolute() and ".." not in Path(text).parts
            # Unlike Path.is_file this takes whatever stands in a table, a name too long for example.
            if inside and os.path.isfile(path):
                places[key] = [path]
                break
    return places


def _by_name(tables: Tables, images: Sequence[Path]) -> dict[VolumeKey, list[Path]]:
    """Returns each volume's files by the names in their paths."""
    places: dict[VolumeKey, list[Path]] = defaultdict(list)
    by_patient: dict[str, list[VolumeKey]] = defaultdict(list)
    for key in tables.rows:
        by_patient[_plain(key[0])].append(key)
    by_id = {dbt_case_id(*key): key for key in tables.rows}
    left = []
    for path in images:
        name = _plain(path.relative_to(tables.folder).as_posix())
        keys = [by_id[each] for each in re.findall(r"dbt-[0-9a-f]{12}", name) if each in by_id]
        if not keys:
            keys = [k for p, own in by_patient.items() if f"{p}" in name for k in own]
            for part in (1, 2):
                keys = [key for key in keys if _plain(key[part]) in name] or keys
        if len(keys) == 1:
            places[keys[0]].append(path)
        elif not keys:
            left.append(path)
    for word, has_boxes in (("positive", True), ("negative", False)):
        named = [path for path in left if f"-{word}-" in _plain(path.name)]
        rows = [
            k for k, row in tables.rows.items() if k not in places and bool(row.boxes) == has_boxes
        ]
        if len(named) == len(rows) == 1:
            places[rows[0]] = named
    return places


def _plain(text: str) -> str:
    """Returns words in small letters with one `-` before and after each."""
    return "-" + "".join(f"{word}-" for word in re.split(r"[^a-z0-9]+", text.lower()) if word)
