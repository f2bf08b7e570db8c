"""Rows of .jsonl, .csv, .tsv and .parquet files, as pairs: place (file, line or row), {field: value}."""
import contextlib
import csv
import itertools
import os
import shutil
import tempfile

from errors import InputError, require, require_package
from storage import paths
from storage.text_files import BYTE_ORDER_MARK, check_size, open_text, opened, suffixes

MAX_LINE = 1 << 24  # characters, for memory
PARQUET_ROWS = 1024  # at once


def read_rows(path, encoding, fields, tell=None):
    """Yields place and row. fields: those that are read of a .parquet; tell: see text_files.opened. Raises
    InputError for what is no row."""
    return READERS[suffixes(path)[0]](path, encoding, fields, tell)


def read_lines(path, encoding, tell):  # -> place, line
    with opened(path, tell) as data:
        file = open_text(data, encoding, path)
        for number in itertools.count(1):
            try:
                line = file.readline(MAX_LINE)
            except UnicodeError as error:
                if isinstance(error, UnicodeDecodeError):  # several lines are decoded at once
                    number += error.object[:error.start].decode(file.encoding, 'replace').count('\n')
                remedy = 'give its --encoding' if encoding else 'convert it'
                raise InputError(f'{path} line {number}: not {file.encoding}; {remedy}') from None
            place = f'{path} line {number}'
            require(len(line) < MAX_LINE, f'{place} has {MAX_LINE:,} characters or more; split it')
            if not line:
                return
            yield place, line.removeprefix(BYTE_ORDER_MARK if number == 1 else '')


def json_rows(path, encoding=None, fields=(), tell=None):  # of a file of any name; encoding: None for UTF-8
    for place, line in read_lines(path, encoding, tell):
        if not line.isspace():
            yield place, paths.parse_object(line, place, 'mend it', 'object like {"text": "…"}')


def csv_rows(path, encoding, fields, tell):
    csv.field_size_limit(MAX_LINE)  # of the process
    dialect, names = {'.csv': 'excel', '.tsv': 'excel-tab'}[suffixes(path)[0]], None
    reader = csv.reader((line for _, line in read_lines(path, encoding, tell)), dialect, strict=True)
    try:
        for row in filter(None, reader):
            place = f'{path} line {reader.line_num}'
            names = names or row
            require(len(row) == len(names),
                    f'{place} has {len(row)} fields, but the first line names {len(names)}; mend it')
            if row is not names:
                yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise InputError(f'{path} line {reader.line_num}: {error}; mend it') from None


def parquet_rows(path, encoding, fields, tell):
    require_package('pyarrow', path)
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile
    with seekable(path) as file:
        try:
            schema = ParquetFile(file).schema
            # Texts that come again are kept once.
            table = ParquetFile(file, read_dictionary=[schema.column(i).path for i in range(len(schema))])
            groups = map(table.metadata.row_group, range(table.num_row_groups))
            check_size(path, sum(group.total_byte_size for group in groups))
            known = table.schema_arrow.names
            names = require([name for name in fields if name in known], f'{path} has no column '
                            f'{" or ".join(fields)}, but {", ".join(known)!r:.200}; give --text_field')
            n_rows = n_chars = 0
            for batch in table.iter_batches(PARQUET_ROWS, columns=names):
                for i in range(batch.num_rows):  # one by one: all could be one large text of a bomb
                    values = [column[i].as_py() for column in batch.columns]
                    n_rows, n_chars = n_rows + 1, n_chars + sum(len(str(value)) for value in values)
                    check_size(path, n_chars)
                    yield f'{path} row {n_rows}', dict(zip(batch.schema.names, values, strict=True))
                if tell:
                    tell(os.path.getsize(path) * n_rows // table.metadata.num_rows)
        except (ArrowException, OSError, UnicodeDecodeError, LookupError, ArithmeticError) as error:
            reason = str(error).partition('\n')[0][:200]
            raise InputError(f'{path} is no whole .parquet file ({reason}); make it anew') from None


@contextlib.contextmanager
def seekable(path):  # a file, unpacked
    with paths.open_regular(path) as file, tempfile.TemporaryFile() as unpacked:
        if suffixes(path)[1]:
            with opened(path) as data:
                shutil.copyfileobj(data, unpacked)
        yield unpacked if suffixes(path)[1] else file


READERS = {'.jsonl': json_rows, '.csv': csv_rows, '.tsv': csv_rows, '.parquet': parquet_rows}
