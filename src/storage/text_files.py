"""Text, read in parts from files, which may be packed as .gz, .xz or .zst."""
import contextlib
import gzip
import io
import lzma
import os
import zlib

from errors import InputError, require, require_package
from storage import paths

READ_CHARS = 1 << 18
BYTE_ORDER_MARK = '\ufeff'
BINARY = (  # first bytes of binary files
    b'\x1f\x8b', b'BZh91AY&SY', b'\xfd7zXZ\0', b'(\xb5/\xfd', b"7z\xbc\xaf'\x1c", b'Rar!\x1a\7', b'PK\3\4',
    b'%PDF-', b'\xd0\xcf\x11\xe0', b'PAR1\x15', b'SQLite format 3\0', b'\x89PNG\r\n', b'\xff\xd8\xff')
READ_BYTES, ZSTD_BYTES = 1 << 17, 1 << 11  # at once; 2^11 bytes unpack to 2^26 at most
MIN_LIMIT, MAX_RATIO = 1 << 26, 100  # what unpacks to more bytes, and to so many times its size, is a bomb


def read_text(path, encoding=None, tell=None):
    """Yields a file's text in parts, without byte-order mark; encoding: None for UTF-8. tell takes the
    number of the file's bytes that are read so far. Raises InputError for what is no text, or damaged."""
    mark = BYTE_ORDER_MARK
    with opened(path, tell) as data:
        file = open_text(data, encoding, path)
        try:
            while text := file.read(READ_CHARS):
                text.encode()  # refuses half a UTF-16 pair in utf-7
                yield text.removeprefix(mark)
                mark = ''
        except UnicodeError as error:
            place = ''
            if isinstance(error, UnicodeDecodeError):
                place = f' at byte {data.tell() - len(error.object) + error.start}'
            remedy = 'give its --encoding' if encoding else 'convert it'
            raise InputError(f'{path}: not {file.encoding}{place}; {remedy}') from None


def open_text(data, encoding, path=''):  # BufferedReader -> TextIOWrapper; raises InputError
    start = data.peek()
    require(not start.startswith(BINARY) and start[257:262] != b'ustar',
            f'{path}: this is a packed or binary file, not text; convert it')
    try:
        return io.TextIOWrapper(data, encoding or 'utf-8', newline='\n')
    except (LookupError, ValueError):
        raise InputError(f'--encoding {encoding!r} is not an encoding of text') from None


def check_surrogates(text, place=''):  # raises InputError
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{place}the character at offset {error.start} is half a UTF-16 pair, or a byte '
                         'that is not UTF-8; mend it') from None


def suffixes(path):  # 'a.jsonl.gz' -> '.jsonl', '.gz'
    stem, packing = os.path.splitext(path.lower())
    return (os.path.splitext(stem)[1], packing) if packing in UNPACKERS else (packing, '')


@contextlib.contextmanager
def opened(path, tell=None):
    """A file's bytes, unpacked. Raises InputError if they are damaged, or far more than the file's."""
    unpack = UNPACKERS[suffixes(path)[1]]
    with paths.open_regular(path, or_pipe=True) as file:
        try:
            yield io.BufferedReader(Unpacked(file, unpack(file), tell))
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise InputError(f'{path} is damaged ({error}); copy or make it anew') from None


def check_size(path, unpacked):  # bytes; raises InputError
    require(unpacked <= max(MIN_LIMIT, MAX_RATIO * os.path.getsize(path)),
            f'{path} unpacks to more than {MAX_RATIO} times its size; unpack it yourself, or leave it out')


class Unpacked(io.RawIOBase):
    """Bytes of an iterator over parts."""

    def __init__(self, file, parts, tell):
        self.file, self.parts, self.tell_user, self.rest, self.count = file, parts, tell, memoryview(b''), 0
        self.is_packed = suffixes(file.name)[1]

    def readable(self):
        return True

    def tell(self):
        return self.count - len(self.rest)

    def readinto(self, buffer):
        while not self.rest and (part := next(self.parts, None)) is not None:
            self.rest, self.count = memoryview(part), self.count + len(part)
            if self.is_packed:
                check_size(self.file.name, self.count)
            if self.tell_user and self.file.seekable():
                self.tell_user(self.file.tell())
        n = min(len(buffer), len(self.rest))
        buffer[:n], self.rest = self.rest[:n], self.rest[n:]
        return n


def parts_of(file, size=READ_BYTES):
    return iter(lambda: file.read(size), b'')


def zstd_parts(file):
    # The package's own reader does not notice that a file is cut short.
    require_package('zstandard', file.name)
    import zstandard
    data, packed = b'', parts_of(file, ZSTD_BYTES)
    try:
        while data := data or next(packed, b''):
            frame = zstandard.ZstdDecompressor().decompressobj()
            while not frame.eof:
                if not data:
                    raise EOFError('it is cut short')
                yield frame.decompress(data)
                data = frame.unused_data or next(packed, b'')
    except zstandard.ZstdError as error:
        raise EOFError(error) from None


UNPACKERS = {  # file, which stays open -> iterator over parts
    '': parts_of, '.zst': zstd_parts, '.gz': lambda file: parts_of(gzip.GzipFile(fileobj=file)),
    '.xz': lambda file: parts_of(lzma.LZMAFile(file))}  # noqa: SIM115
