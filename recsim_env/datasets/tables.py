"""Reading tables so that every failure is one sentence that says how to mend it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recsim_env.errors import DataError, MissingDataError, near_miss

__all__ = [
    "as_table",
    "identifiers",
    "is_text",
    "lists_of_text",
    "numbers",
    "read_json",
    "read_matrix",
    "read_table",
    "require",
    "texts",
]

_CSV_ENDINGS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_OTHER_DELIMITERS = (";", ",", "\t", "|")
_PARQUET_ENDINGS = (".parquet", ".pq")


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a parquet or CSV file; all columns of a CSV come as text.

    Args:
        path: A file that ends in .parquet, .pq, .csv, .tsv or .txt (the last two by tabs). A header
            without that delimiter but with a semicolon, comma, tab or bar is cut at that one.
        columns: Columns that must be there; only these are read. None: all.

    Raises:
        MissingDataError: The file is not there.
        DataError: It cannot be read, or a column is missing.
    """
    file = _existing(path)
    ending = file.suffix.lower()
    if ending not in (*_CSV_ENDINGS, *_PARQUET_ENDINGS):
        raise DataError(
            f"{file} ends in {file.suffix!r}, expected a table in .parquet, .csv or .tsv: convert "
            "it, or give a data frame."
        )
    try:
        if ending in _PARQUET_ENDINGS:
            known = pq.read_schema(file).names
            _require_names(known, columns, str(file))
            return pq.read_table(file, columns=None if columns is None else list(columns))
        parsing = pa_csv.ParseOptions(
            delimiter=_delimiter(file, _CSV_ENDINGS[ending]), newlines_in_values=True
        )
        with pa_csv.open_csv(file, parse_options=parsing) as reader:
            known = reader.schema.names
        _require_names(known, columns, str(file))
        converting = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(known, pa.string()),
            include_columns=list(columns) if columns is not None else [],
            strings_can_be_null=True,
            null_values=["", "NA", "NaN", "nan", "null", "NULL"],
        )
        return pa_csv.read_csv(file, parse_options=parsing, convert_options=converting)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
            raise DataError(
                f"{file} came as text that is not UTF-8, expected UTF-8: save it again in that "
                'encoding (spreadsheets call it "CSV UTF-8").'
            ) from error
        raise DataError(
            f"{file} came as something that cannot be read as a table ({_first_line(error)}), "
            "expected a whole parquet or CSV file: it may be cut short, so fetch or write it again."
        ) from error


def as_table(table: Any, what: str) -> pa.Table:
    """Returns a data frame, an Arrow table, a dictionary of columns or a file as an Arrow table.

    Args:
        table: A path, or anything that Arrow understands (pandas and polars data frames too).
        what: What the table is, for messages: "interactions" or "items".

    Raises:
        DataError: It is none of these, cannot be read or has two columns of one name.
    """
    try:
        made = read_table(table) if isinstance(table, (str, Path)) else pa.table(table)
    except DataError:
        raise
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"The table of {what} came as {type(table).__name__} ({_first_line(error)}), expected "
            "a data frame, a dictionary of columns or the path of a parquet or CSV file, and one "
            "type per column: convert it."
        ) from error
    repeated = sorted({name for name in made.column_names if made.column_names.count(name) > 1})
    if repeated:
        raise DataError(
            f"The table of {what} has several columns {repeated[0]!r}, expected each name once: "
            "rename or drop all but one."
        )
    return made


def require(table: pa.Table, columns: Sequence[str], where: str) -> None:
    """Checks that columns are there.

    Raises:
        DataError: One is not.
    """
    _require_names(table.column_names, columns, where)


def identifiers(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.str_]:
    """Returns ids of any type as text; whole numbers lose a trailing ".0".

    Args:
        column: Without missing values.
        name: Of the column, for messages.
    """
    _no_nulls(column, name, "an id")
    if pa.types.is_floating(column.type):
        values = column.to_numpy()
        if np.isfinite(values).all() and (values == np.floor(values)).all():
            return np.asarray(values.astype(np.int64).astype(str))
    return np.asarray([str(value).strip() for value in column.to_pylist()], dtype=str)


def is_text(column: pa.ChunkedArray) -> bool:
    """Returns whether a column holds text."""
    return str(column.type) in ("string", "large_string", "string_view")


def numbers(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    """Returns a column of finite numbers as (n,) float64.

    Args:
        column: Numbers, booleans, or text that spells numbers, with a decimal point or comma.
        name: Of the column, for messages.

    Raises:
        DataError: Something in it is no finite number.
    """
    _no_nulls(column, name, "a number")
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        elif is_text(column):
            column = _with_decimal_points(pc.utf8_trim_whitespace(column))
        values: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise DataError(
            f"The column {name!r} holds something that is no number ({_first_line(error)}), "
            "expected only numbers: mend or drop those rows."
        ) from error
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"The column {name!r} holds {values[row]} in row {row} (counted from 0), expected only "
            "finite numbers: mend or drop those rows."
        )
    return values


def _with_decimal_points(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turns decimal commas into points where all is so written and no comma can part thousands."""
    written = pc.match_substring_regex(column, r"^[+-]?\d+(,\d+)?$")
    proven = pc.match_substring_regex(column, r",(\d{1,2}|\d{4,})$")
    if pc.all(written).as_py() and pc.any(proven).as_py():
        return pc.replace_substring(column, ",", ".")
    return column


def texts(column: pa.ChunkedArray) -> list[str]:
    """Returns a column as text, "" where there is none."""
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def lists_of_text(column: pa.ChunkedArray, separator: str = "|") -> list[tuple[str, ...]]:
    """Returns a column of lists, or of text to be cut at `separator`, as tuples of names.

    Text in the form of a list, such as ``['Action', 'Indie']``, is understood too.
    """
    return [names_of(value, separator) for value in column.to_pylist()]


def names_of(value: object, separator: str = "|") -> tuple[str, ...]:
    """Returns the names in a list, in text that is cut at `separator`, or in a printed list."""
    if value is None:
        return ()
    if isinstance(value, str):
        inner = value.strip()
        if inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
            quote = inner[:1]
            parts: Iterable[object] = (
                inner.strip(quote).split(f"{quote}, {quote}")
                if quote in ("'", '"')
                else inner.split(",")
            )
        else:
            parts = inner.split(separator)
    else:
        parts = value if isinstance(value, Iterable) else (value,)
    stripped = (str(part).strip().strip("'\"") for part in parts if part is not None)
    return tuple(dict.fromkeys(name for name in stripped if name))


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        MissingDataError: The file is not there.
        DataError: It is no JSON.
    """
    file = _existing(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file} came as something that is no JSON ({_first_line(error)}), expected a whole "
            "JSON file: it may be cut short, so fetch it again."
        ) from error


def read_matrix(path: str | Path) -> npt.NDArray[np.generic]:
    """Opens a two-dimensional numpy array on disk, without reading it into memory.

    Raises:
        MissingDataError: The file is not there.
        DataError: It is no such array.
    """
    file = _existing(path)
    try:
        matrix: npt.NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{file} came as something that is no numpy array ({_first_line(error)}), expected a "
            "whole .npy file of numbers: it may be cut short, so fetch it again."
        ) from error
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.number):
        raise DataError(
            f"{file} holds {matrix.dtype} of shape {matrix.shape}, expected a matrix of numbers "
            "(users, items): give the reward matrix."
        )
    return matrix


def _delimiter(file: Path, usual: str) -> str:
    """Returns what parts the columns in the header of a CSV file."""
    with file.open("rb") as stream:
        header = stream.readline()
    if header.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{file} came as text in UTF-16, expected UTF-8: save it again in that encoding "
            '(spreadsheets call it "CSV UTF-8").'
        )
    if usual.encode() in header:
        return usual
    return next((sign for sign in _OTHER_DELIMITERS if sign.encode() in header), usual)


def _existing(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise DataError(f"{file} is a folder, expected a file: name the file in it.")
    siblings = [f.name for f in file.parent.iterdir()] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, siblings, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "check the path or put the file there."
    raise MissingDataError(f"The file {file} is not there, expected a readable file: {hint}")


def _require_names(known: Sequence[str], wanted: Sequence[str] | None, where: str) -> None:
    for name in wanted or ():
        if name not in known:
            raise DataError(
                f"{where} has no column {name!r}, expected {', '.join(wanted or ())}: "
                f"{near_miss(name, known)}."
            )


def _no_nulls(column: pa.ChunkedArray, name: str, what: str) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(
            f"The column {name!r} is empty or NaN in {column.null_count} rows (the first is row "
            f"{row}, counted from 0), expected {what} in each: fill them in or drop those rows."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
