"""Text, read from files in parts."""
import io

from errors import InputError, require
from storage import paths

READ_CHARS = 1 << 18
BYTE_ORDER_MARK = '\ufeff'
BINARY = (  # first bytes of binary files
    b'\x1f\x8b', b'BZh91AY&SY', b'\xfd7zXZ\0', b'(\xb5/\xfd', b"7z\xbc\xaf'\x1c", b'Rar!\x1a\7', b'PK\3\4',
    b'%PDF-', b'\xd0\xcf\x11\xe0', b'PAR1\x15', b'SQLite format 3\0', b'\x89PNG\r\n', b'\xff\xd8\xff')


def read_text(path, encoding=None):
    """Yields a file's text in parts, without byte-order mark; encoding: None for UTF-8."""
    mark = BYTE_ORDER_MARK
    with paths.open_regular(path, or_pipe=True) as data:
        require(not data.peek().startswith(BINARY),
                f'{path}: this is a packed or binary file, not text; convert it')
        file = open_text(data, encoding)
        try:
            while text := file.read(READ_CHARS):
                text.encode()  # refuses half a UTF-16 pair in utf-7
                yield text.removeprefix(mark)
                mark = ''
        except UnicodeError as error:
            place = ''
            if isinstance(error, UnicodeDecodeError) and data.seekable():
                place = f' at byte {data.tell() - len(error.object) + error.start}'
            remedy = 'give its --encoding' if encoding else 'convert it'
            raise InputError(f'{path}: not {file.encoding}{place}; {remedy}') from None


def open_text(data, encoding):  # or raises InputError
    try:
        return io.TextIOWrapper(data, encoding or 'utf-8', newline='\n')
    except (LookupError, ValueError):
        raise InputError(f'--encoding {encoding!r} is not an encoding of text') from None
