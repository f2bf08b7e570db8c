#!/usr/bin/env python3
"""Fetches a released model: `./download_model.py 124M` puts its seven files into models/124M.

A file stands under its final name only when it is whole and checked. Until then it is <file>.part, with
<file>.part.etag beside it, which says which version of the file the part belongs to; a broken download is resumed
from there, also by a later run. Run again on a whole model, it fetches nothing. What has not the length and
SHA-256 that are known of a released file is kept beside it, as <file>.sha256-<its own>.

Another source, such as a mirror, is given by --base_url or the environment variable GPT2_BASE_URL; the files are
expected at <base_url>/<model_name>/<file>.
"""
import base64
import contextlib
import dataclasses
import email.utils
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))
from command_line import cli  # before what takes longer: from here on, Ctrl-C ends the script quietly

# isort: split
import requests
from tqdm import tqdm

from errors import InputError, require
from storage import paths

BASE_URL = 'https://openaipublic.blob.core.windows.net/gpt-2/models'
WEIGHTS = 'model.ckpt.data-00000-of-00001'
KNOWN: dict[str, tuple] = {  # of released files: bytes, SHA-256, and True where two ways have led to the same sum
    'checkpoint': (77, 'dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb', True),
    'encoder.json': (1_042_301, '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783', True),
    'vocab.bpe': (456_318, '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5', True),
    '124M/hparams.json': (90, 'd9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318', True),
    f'124M/{WEIGHTS}': (497_759_232, '2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118', True),
    '124M/model.ckpt.index': (5_215, '71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687'),
    '124M/model.ckpt.meta': (471_155, '4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b'),
    '355M/hparams.json': (91, '310dfdb1f0c786b79d93459eaa470f3978d873bdc3e1f9fed1cad24d9dd0b1f6'),
    f'355M/{WEIGHTS}': (1_419_292_672,),
    '355M/model.ckpt.index': (10_399,),
    '355M/model.ckpt.meta': (926_519,),
    '774M/hparams.json': (91, '55485135775c1ed186dd09e372e74d2617ee7dc2cf7b54de26960fb5192dbacf'),
    f'774M/{WEIGHTS}': (3_096_120_320,),
    '1558M/hparams.json': (91, '647420ef8cf586f8933899000aa50c1996eaca50e4dc6fbd25bfdc64f4207bbf'),
    f'1558M/{WEIGHTS}': (6_230_444_800,),
}
CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # in a row that brought nothing
BACKOFF = 1  # seconds before the second attempt, then doubled
RETRY_AFTER_LIMIT = 60  # seconds that a server may make us wait
CHUNK = 1 << 16  # bytes
REDIRECTS = 10
LARGEST = {  # bytes that a file may have; the released ones are far from it
    'checkpoint': 1 << 16, 'hparams.json': 1 << 16, 'encoder.json': 1 << 26, 'vocab.bpe': 1 << 26,
    'model.ckpt.index': 1 << 26, 'model.ckpt.meta': 1 << 28,
    WEIGHTS: 1 << 36}  # 17 thousand million weights; 1558M has 6.2e9 bytes


class TransferError(Exception):
    """A break that another attempt may mend; the server may have asked for a wait of so many seconds."""

    def __init__(self, message, retry_after=0.0):
        super().__init__(message)
        self.retry_after = retry_after


class CorruptError(Exception):
    """What came is not the file; nothing of it can be kept."""


class Session(requests.Session):
    """Follows no redirects: requests would take what comes with one into memory, however much that is."""
    redirect_target = requests.Session.get_redirect_target

    def get_redirect_target(self, response):
        return None


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the model: its URL, its final path, what KNOWN says of it; what is sure has length and sum."""
    url: str
    path: str
    length: int | None = None
    sha256: str | None = None
    sure: bool = False

    @property
    def part(self):
        return self.path + '.part'

    @property
    def record(self):
        return self.path + '.part.etag'

    @property
    def largest(self):
        return LARGEST[os.path.basename(self.path)]


def download_model(model_name: str, models_dir: str = 'models', base_url: str | None = None):
    """Downloads a model to <models_dir>/<model_name>; resumes what was broken off, keeps what is whole.

    Raises InputError for an unknown name and whatever keeps a file from being fetched whole.

    Args:
        model_name: 124M, 355M, 774M or 1558M; with a base_url any name that it has.
        models_dir: the folder of all models.
        base_url: where the models are, instead of GPT2_BASE_URL or OpenAI's storage.
    """
    name, base_url = source(model_name, base_url)
    folder = paths.for_tensorflow(paths.child(models_dir, name, '--model_name'))
    with Session() as session:
        session.headers['Accept-Encoding'] = 'identity'  # lengths and ranges are those of the file itself
        files = model_files(name, folder, base_url)
        for file in files:
            try:
                if not is_whole(session, file):
                    fetch(session, file)
            except OSError as error:
                raise InputError(f'{error.filename or file.part} cannot be written: {error.strerror or error}; '
                                 'check its folder and the free space, then run again') from error
    missing = [os.path.basename(file.path) for file in files if not os.path.exists(file.path)]
    require(not missing, f'{folder} is not whole: what came as {" and ".join(missing)} is kept aside; rename it as '
                         'said above, or give another --base_url, and run again')
    note(f'{name} is in {folder}')


def note(message):
    tqdm.write(message, file=sys.stderr)


def source(model_name, base_url):  # -> released name, base URL
    """Resolves aliases and defaults. Raises InputError for a name or a URL that cannot be meant."""
    mirror = base_url or os.environ.get('GPT2_BASE_URL')
    name = paths.ALIASES.get(model_name, model_name)
    require(name.isprintable() and len(name) <= 200, f'--model_name {name[:80]!r} is too long or not printable')
    require(mirror or name in paths.RELEASED_MODELS,
            f'unknown --model_name {name!r}; released are {", ".join(paths.RELEASED_MODELS)}; for another one give '
            '--base_url or set GPT2_BASE_URL')
    require(not mirror or mirror.lower().startswith(('http://', 'https://')),
            f'the base URL must begin with http:// or https://, not {mirror!r}; see --base_url and GPT2_BASE_URL')
    if name != model_name:
        note(f'{model_name} was released as {name}')
    return name, (mirror or BASE_URL).rstrip('/')


def model_files(name, folder, base_url):
    known = KNOWN if name in paths.RELEASED_MODELS else {}
    return [File(f'{base_url}/{urllib.parse.quote(name)}/{each}', os.path.join(folder, each),
                 *known.get(f'{name}/{each}', known.get(each, ()))) for each in paths.MODEL_FILES]


def is_whole(session, file):
    """Whether the file under its final name can stay: it is as known, or else has the length that the server tells.

    It was renamed whole, so a server that cannot be asked or tells no length does not count against it.
    """
    if not os.path.exists(file.path):
        return False
    difference = unlike_released(file, file.path)
    if file.sure or (file.length and not difference):
        return not difference
    length = None
    with contextlib.suppress(InputError, TransferError), request(session, 'HEAD', file.url) as response:
        check_headers(response, file)
        length = content_length(response)
    stays = not length or length == os.path.getsize(file.path)  # some servers answer HEAD with 0
    if stays and difference:
        note(f'{file.path}: {difference}; it stays, as what is known is not sure')
    return stays


def unlike_released(file, path):  # -> how, '' if not at all or if nothing is known
    length = os.path.getsize(path)
    if file.length not in (None, length):
        return f'has {length:,} bytes, the released file {file.length:,}'
    if file.sha256 and (sha256 := digest(path, 'sha256').hexdigest()) != file.sha256:
        return f'SHA-256 is {sha256}, that of the released file {file.sha256}'
    return ''


def set_aside(file, path):  # -> its new path, which no other content has
    aside = f'{file.path}.sha256-{digest(path, "sha256").hexdigest()[:16]}'
    os.replace(path, aside)
    return aside


def fetch(session, file):
    """Downloads a file, checks it and puts it under its final name; a corrupt one is fetched once more.

    Raises InputError when that is in vain or refused. What differs from what is known of the released file is
    set aside, and refused where that is sure.
    """
    if file.length and os.path.exists(file.path):  # perhaps somebody's own weights
        note(f'{file.path} is not the released file, and is kept as {set_aside(file, file.path)}')
    for last in (False, True):
        try:
            transfer(session, file)
            check(file)
            break
        except CorruptError as error:
            discard(file)
            require(not last, f'{file.url}: {error}, twice; try again later or give another --base_url')
            note(f'{file.url}: {error}; fetching it once more')
    if difference := unlike_released(file, file.part):
        difference = f'{file.url}: {difference}; what came is kept as {set_aside(file, file.part)}'
        remove(file.record)
        require(not file.sure, f'{difference}; run again, or give another --base_url')
        note(f'{difference}; what is known is not sure: if you trust the server, rename it to {file.path}')
    else:
        with open(file.part, 'rb+') as part:
            os.fsync(part.fileno())
        os.replace(file.part, file.path)
        remove(file.record)


def transfer(session, file):
    """Brings file.part to its full length, in as many attempts as bring something.

    Raises InputError when refused or after ATTEMPTS in a row that brought nothing, CorruptError as `receive` does.
    """
    furthest, failures = resume_point(file)[0], 0
    while True:
        try:
            return attempt(session, file)
        except TransferError as error:
            have = size(file.part)
            # getting as far as before is no progress: without ranges each attempt starts from zero, without end
            failures = 1 if have > furthest else failures + 1
            furthest = max(furthest, have)
            require(failures < ATTEMPTS, f'{file.url}: {error}; gave up after {ATTEMPTS} attempts without progress; '
                                         'check the connection, then run again to go on')
            wait = delay(failures, error.retry_after)
            note(f'{file.url}: {error}; next attempt in {wait:.1f} s')
            time.sleep(wait)


def delay(failures, retry_after):  # -> seconds
    """Exponential back-off with jitter, and no sooner than the server asked."""
    return max(BACKOFF * 2 ** (failures - 1) * random.uniform(0.5, 1.5), retry_after)


def attempt(session, file):
    """Asks for what file.part lacks, and receives it. Raises InputError, TransferError or CorruptError."""
    have, validator = resume_point(file)
    headers = {'Range': f'bytes={have}-', 'If-Range': validator} if have else {}
    with request(session, 'GET', file.url, headers) as response:
        if response.status_code == 416 and have:
            if header(response, 'Content-Range') != f'bytes */{have}' or differs(response, validator):
                start_again(file, 'the server does not know the rest of this part')
            return
        check_headers(response, file)
        if response.status_code == 206:
            receive(response, file, have, partial_size(response, file, have, validator))
        else:
            receive(response, file, 0, complete_size(response, file))


def request(session, method, url, headers=None):
    """One request, redirects followed. Raises InputError for what is no web address, TransferError for a break."""
    at = url
    try:
        for _ in range(REDIRECTS + 1):
            response = session.request(method, at, headers=headers, stream=True,
                                       timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
            target = session.redirect_target(response)
            if target is None:
                return response
            response.close()
            secure, at = at.lower().startswith('https:'), urllib.parse.urljoin(at, target)
            if secure and not at.lower().startswith('https:'):
                raise ValueError(f'https leads on to {at}')
        raise ValueError(f'more than {REDIRECTS} redirects')
    except ValueError as error:  # all of requests' complaints about URLs are
        raise InputError(f'{url}: cannot be fetched ({str(error)[:200]}); it must lead to an http or https address, '
                         'from https to https; check --base_url (or GPT2_BASE_URL) and the proxy settings') from error
    except requests.RequestException as error:
        raise TransferError(reason(error)) from error


def reason(error):
    """The last of the causes that requests and urllib3 wrap into one another."""
    return str(error).rsplit(': ', 1)[-1].strip('\'")') or type(error).__name__


def check_headers(response, file):
    """Raises TransferError for a status that may pass, InputError for all else that does not announce the file."""
    status = f'status {response.status_code} {response.reason}'
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise TransferError(status, retry_after(response))
    require(response.status_code == 200 or (response.status_code == 206 and 'Range' in response.request.headers),
            f'{file.url}: {status} where 200 was expected; check --model_name and --base_url (or GPT2_BASE_URL)')
    require(header(response, 'Content-Type').partition(';')[0].strip().lower() != 'text/html', web_page(file))
    encoding = header(response, 'Content-Encoding') or 'identity'
    require(encoding == 'identity',
            f'{file.url}: expected the file as it is, Content-Encoding is {encoding}; give another --base_url')


def web_page(file):
    return (f'{file.url}: a web page came instead of the file; check --base_url (or GPT2_BASE_URL), and whether '
            'the network wants a login or a proxy')


def header(response, name):
    return response.headers.get(name, '').strip()


def retry_after(response):  # -> seconds
    """The Retry-After header, in seconds or as a date, within reason."""
    text = header(response, 'Retry-After')
    seconds = number(text)
    if seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_LIMIT)


def number(text):
    return int(text) if re.fullmatch('[0-9]{1,18}', text) else None


def content_length(response):
    return number(header(response, 'Content-Length'))


def complete_size(response, file):
    """The length of a whole file, announced or known; None where only its end tells; InputError if nothing."""
    length = content_length(response)
    if length is None and file.sure:
        return file.length
    require(length is not None or 'chunked' in header(response, 'Transfer-Encoding').lower(),
            f'{file.url}: the server announces no length (Content-Length), so that a break would go unnoticed; '
            'give another --base_url')
    return length


def partial_size(response, file, have, validator):
    """The length of the whole file of which a 206 brings the rest. Raises TransferError if it is not that rest."""
    content_range = header(response, 'Content-Range')
    match = re.fullmatch('bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})', content_range)
    first, last, whole = map(int, match.groups()) if match else (0, 0, 0)
    if (first, last + 1) != (have, whole) or content_length(response) not in (None, whole - have):
        start_again(file, f'the rest from byte {have} was asked for, but Content-Range is {content_range!r} and '
                          f'Content-Length {content_length(response)}')
    if differs(response, validator):
        start_again(file, 'the file has changed')
    return whole


def differs(response, validator):
    """Whether the server names another version; a 206 or 416 need not name any."""
    return validator_of(response) not in ('', validator)


def validator_of(response):
    """A strong ETag, or else Last-Modified: what If-Range can compare; '' if there is none that can be sent back."""
    etag = header(response, 'ETag')
    validator = etag if etag and not etag.startswith('W/') else header(response, 'Last-Modified')
    return validator if re.fullmatch('[ -~]{1,200}', validator) else ''


def start_again(file, why):
    discard(file)
    raise TransferError(f'{why}; starting from zero')


def receive(response, file, start, whole):
    """Writes the body to file.part from byte `start` to `whole`, the length it shall have (None: to the body's end).

    Raises TransferError when it breaks off, CorruptError when more comes than was announced.
    """
    announced = whole or start
    require(announced <= file.largest, too_large(file, f'{announced:,} bytes are announced'))
    if file.sure and whole != file.length:
        raise InputError(f'{file.url}: {whole:,} bytes are announced, where the released file has '
                         f'{file.length:,}; check --base_url (or GPT2_BASE_URL)')
    os.makedirs(os.path.dirname(file.part), exist_ok=True)
    free = shutil.disk_usage(os.path.dirname(file.part)).free
    require(announced - start <= free, f'{file.path}: {announced - start:,} bytes are to come, and the disk has '
                                       f'{free:,} free; make room, then run again')
    with (open(file.part, 'ab' if start else 'wb') as part,
          tqdm(desc=os.path.basename(file.path), total=whole, initial=start, unit='B', unit_scale=True) as progress):
        if not start:
            write_record(file, response)
        have = start
        for chunk in chunks(response):
            have += len(chunk)
            if whole is not None and have > whole:
                raise CorruptError(f'more than the {whole} bytes of the file came')
            if have > file.largest:
                discard(file)
                raise InputError(too_large(file, 'more came'))
            part.write(chunk)
            progress.update(len(chunk))
    if whole is not None and have < whole:
        raise TransferError(f'broke off at {have} of {whole} bytes')


def too_large(file, came):
    return (f'{file.url}: {came}, where such a file has at most {file.largest:,}; check --base_url (or GPT2_BASE_URL)')


def chunks(response):
    """The body as it arrives. Raises TransferError when it breaks off."""
    while True:
        try:
            chunk = response.raw.read1(CHUNK)  # iter_content would lose, at a break, what does not fill a chunk
        except (OSError, requests.exceptions.BaseHTTPError) as error:
            raise TransferError(reason(error)) from error
        if not chunk:
            return
        yield chunk


def check(file):
    """Raises InputError if file.part is a web page, CorruptError if it is not what its name and MD5 say."""
    with open(file.part, 'rb') as part:
        start = part.read(1024).lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if start.startswith((b'<!doctype', b'<html', b'<?xml')):
        discard(file)
        raise InputError(web_page(file))
    md5 = read_record(file)[1]
    if md5 and base64.b64encode(digest(file.part, 'md5').digest()).decode() != md5:
        raise CorruptError(f'its MD5 is not that of its Content-MD5 header, {md5}')
    check_structure(file, start)


def check_structure(file, start):
    """Raises CorruptError unless file.part begins, or parses, as a file of this name does."""
    name = os.path.basename(file.path)
    expected = {'checkpoint': b'model_checkpoint_path', 'vocab.bpe': b'#version'}.get(name, b'')
    if not start or not start.startswith(expected):
        raise CorruptError(f'begins with {start[:20]!r}, expected {expected or "something"!r}')
    if name.endswith('.json'):
        try:
            with open(file.part, encoding='utf-8') as part:
                value = json.load(part)
        except (ValueError, RecursionError) as error:
            raise CorruptError(f'is not JSON ({error})') from error
        if name == 'hparams.json' and not isinstance(value, dict):
            raise CorruptError(f'is not a JSON object but {type(value).__name__}')


def digest(path, algorithm):  # -> hashlib object
    result = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            result.update(chunk)
    return result


def write_record(file, response):
    """Keeps what only the first answer tells: which version file.part holds, and the MD5 of the whole."""
    with open(file.record, 'w', encoding='latin-1', newline='\n') as record:
        record.write(f'{validator_of(response)}\n{header(response, "Content-MD5")}\n')


def read_record(file):  # -> validator, MD5 in base64
    """What write_record has kept; '' for what the server did not tell."""
    try:
        with open(file.record, encoding='latin-1') as record:
            lines = record.read().splitlines()
    except FileNotFoundError:
        lines = []
    return (*lines, '', '')[:2]


def resume_point(file):  # -> bytes in file.part, their validator
    """Where to go on; a part of which the version is not known is discarded."""
    validator = read_record(file)[0]
    if not validator:
        discard(file)
    return size(file.part), validator


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def discard(file):
    remove(file.part)
    remove(file.record)


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


if __name__ == '__main__':
    cli.run(download_model)
