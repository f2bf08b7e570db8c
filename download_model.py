#!/usr/bin/env python3
"""Fetches a released model: `./download_model.py 124M` puts its seven files into models/124M.

A file gets its final name only when it is whole and checked. Until then it is <file>.part, which the next run
resumes. Data that differs from the released file's is kept as <file>.sha256-<its own>.
"""
import hashlib
import os
import pathlib
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))
from command_line import cli  # before what takes longer: from here on, Ctrl-C ends the script quietly

# isort: split
import requests
import urllib3
from tqdm import tqdm

from errors import InputError
from storage import paths

BASE_URL = 'https://openaipublic.blob.core.windows.net/gpt-2/models'
DATA = 'model.ckpt.data-00000-of-00001'
KNOWN: dict[str, tuple] = {  # of released files: bytes, SHA-256, and True where two sources confirm the sum
    'checkpoint': (77, 'dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb', True),
    'encoder.json': (1_042_301, '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783', True),
    'vocab.bpe': (456_318, '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5', True),
    '124M/hparams.json': (90, 'd9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318', True),
    f'124M/{DATA}': (497_759_232, '2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118', True),
    '124M/model.ckpt.index': (5_215, '71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687'),
    '124M/model.ckpt.meta': (471_155, '4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b'),
    '355M/hparams.json': (91, '310dfdb1f0c786b79d93459eaa470f3978d873bdc3e1f9fed1cad24d9dd0b1f6'),
    '355M/model.ckpt.index': (10_399,), '355M/model.ckpt.meta': (926_519,),
    '774M/hparams.json': (91, '55485135775c1ed186dd09e372e74d2617ee7dc2cf7b54de26960fb5192dbacf'),
    '1558M/hparams.json': (91, '647420ef8cf586f8933899000aa50c1996eaca50e4dc6fbd25bfdc64f4207bbf'),
    f'355M/{DATA}': (1_419_292_672,), f'774M/{DATA}': (3_096_120_320,), f'1558M/{DATA}': (6_230_444_800,),
}
MAX_BYTES, MAX_DATA_BYTES = 1 << 28, 1 << 36  # the weights of 1558M have 6.2e9
TIMEOUTS = 10, 30  # seconds to connect, and without a byte
ATTEMPTS, BACKOFF = 5, 1  # in a row without progress; seconds before the second, then doubled
MAX_RETRY_AFTER = 60  # seconds that a server may make us wait
CHUNK = 1 << 16  # bytes


def download_model(model_name: str, models_dir: str = 'models', base_url: str | None = None):
    """Downloads a model to <models_dir>/<model_name>; resumes what was broken off, keeps what is whole.

    Raises InputError for an unknown name or a file that does not come whole, OSError for the disk.

    Args:
        model_name: 124M, 355M, 774M or 1558M; with a base_url any name that it has.
        models_dir: the folder of all models.
        base_url: a mirror, with <base_url>/<model_name>/<file>, instead of GPT2_BASE_URL or OpenAI's storage.
    """
    mirror = base_url or os.environ.get('GPT2_BASE_URL')
    name = paths.ALIASES.get(model_name, model_name)
    if not mirror and name not in paths.RELEASED_MODELS:
        raise InputError(f'unknown --model_name {name!r}; released are {", ".join(paths.RELEASED_MODELS)}; '
                         'for another one give --base_url or set GPT2_BASE_URL')
    folder = pathlib.Path(paths.for_tensorflow(paths.child(models_dir, name, '--model_name')))
    url = f'{(mirror or BASE_URL).rstrip("/")}/{urllib.parse.quote(name)}'
    known = KNOWN if name in paths.RELEASED_MODELS else {}
    with requests.Session() as session:
        session.headers['Accept-Encoding'] = 'identity'  # lengths and ranges are those of the file itself
        session.hooks['response'].append(close_redirect)
        if url.lower().startswith('https:'):
            del session.adapters['http://']  # so that no redirect leads there
        for file in paths.MODEL_FILES:
            facts = known.get(f'{name}/{file}', known.get(file, ()))
            Download(session, f'{url}/{file}', folder / file, *facts).fetch()
    print(f'{name} is in {folder}', file=sys.stderr)


def close_redirect(response, **_):
    if response.is_redirect:
        urllib3.util.parse_url(response.headers['Location'])  # raises LocationParseError
        response.close()  # or requests would read its body, which may have no end, into memory


class Download:
    """A file of a model: its URL, its final path, and what KNOWN says of it."""

    def __init__(self, session, url, path, length=None, sha256=None, sure=False):
        self.session, self.url, self.path = session, url, path
        self.part, self.record = path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.part.etag')
        self.length, self.sha256, self.sure = length, sha256, sure

    def fetch(self):
        """Downloads the file unless it is there, checks it, and names it. Raises InputError, OSError."""
        if self.path.exists():
            if not self.difference(self.path):
                return
            print(f'{self.path} is not as released: kept as {self.set_aside(self.path)}', file=sys.stderr)
        self.transfer()
        if difference := self.difference(self.part):
            remedy = '' if self.sure else f'if you trust the server, rename it to {self.path}, or '
            raise InputError(f'{self.url}: {difference}; what came is kept as {self.set_aside(self.part)}; '
                             f'{remedy}give another --base_url, and run again')
        paths.synchronize(str(self.part))
        self.part.replace(self.path)
        self.record.unlink()

    def difference(self, path):  # -> how a file differs from the released one, as far as that is known
        length = path.stat().st_size
        if self.length not in (None, length):
            return f'has {length:,} bytes, the released file {self.length:,}'
        if not self.sha256 or (path == self.path and not self.sure):  # the user may have renamed it
            return ''
        sha256 = sha256_of(path)
        return '' if sha256 == self.sha256 else f'SHA-256 is {sha256}, of the released file {self.sha256}'

    def set_aside(self, path):  # -> the new path, which no other content has
        self.record.unlink(missing_ok=True)
        return path.replace(f'{self.path}.sha256-{sha256_of(path)[:16]}')

    def refusal(self, problem):
        return InputError(f'{self.url}: {problem}; check --base_url (or GPT2_BASE_URL), a login, the proxy')

    def transfer(self):
        """Brings the part to its full length. Raises InputError if refused, or after ATTEMPTS."""
        longest = failures = 0
        while True:
            try:
                return self.attempt()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                if isinstance(error, (ValueError, requests.TooManyRedirects)):  # about the address
                    raise self.refusal(f'{error} (it must be http or https, and stay https)') from error
                # As long as before is no progress: without ranges, each attempt starts from zero.
                failures = 1 if self.have > longest else failures + 1
                longest = max(longest, self.have)
                reason = str(error.args[0]).rsplit(': ', 1)[-1].strip('\'")')  # the innermost of its causes
                if failures >= ATTEMPTS:
                    raise self.refusal(f'{reason}; gave up after {ATTEMPTS} attempts, run again') from error
                wait = max(BACKOFF * 2 ** (failures - 1), min(self.wait, MAX_RETRY_AFTER))
                print(f'{self.url}: {reason}; next attempt in {wait:.0f} s', file=sys.stderr)
                time.sleep(wait)

    def attempt(self):
        """Asks for what the part lacks, and appends it. Raises RequestException, HTTPError, InputError."""
        etag = self.record.read_text('latin-1') if self.record.exists() else ''
        strong = etag[:1] == '"' and len(etag) < 200 and etag.isascii() and etag.isprintable()
        self.have = self.part.stat().st_size if strong and self.part.exists() else 0
        self.wait = 0.0  # seconds that the server wants
        ask = {'Range': f'bytes={self.have}-', 'If-Range': etag} if self.have else {}
        with self.session.get(self.url, headers=ask, stream=True, timeout=TIMEOUTS) as response:
            status, headers, length = response.status_code, response.headers, response.raw.length_remaining
            if status in (408, 429) or status >= 500:
                self.wait = urllib3.Retry().get_retry_after(response.raw) or 0
                raise requests.HTTPError(f'status {status} {response.reason}')
            if status not in ((200, 206, 416) if ask else (200,)):
                raise self.refusal(f'status {status} {response.reason} where 200 was expected')
            if status == 200:
                self.have = 0
            else:
                whole = self.have + (length or 0)
                rest = f'bytes {self.have}-{whole - 1}/{whole}' if status == 206 else f'bytes */{self.have}'
                if headers.get('Content-Range') != rest or headers.get('ETag', etag) != etag:
                    self.record.unlink()
                    raise requests.HTTPError('the rest that came does not fit; starting from zero')
            if status != 416:
                self.receive(response, length)

    def receive(self, response, length):
        """Appends the body, of `length` bytes if that is announced, to the first `have` bytes of the part."""
        kind, encoding = (response.headers.get(f'Content-{name}', '') for name in ('Type', 'Encoding'))
        data = response.raw.read(1024)
        page = data.lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith((b'<!doctype', b'<html', b'<?xml'))
        if page or kind.startswith('text/html') or encoding not in ('', 'identity') or not data:
            raise self.refusal('a web page, compressed data or nothing came instead of the file')
        whole = None if length is None else self.have + length
        limit = self.length if self.sure else MAX_DATA_BYTES if self.path.name == DATA else MAX_BYTES
        if (whole or 0) > limit or (whole is None and not response.raw.chunked):
            raise self.refusal(f'{whole} bytes are announced (Content-Length), expected at most {limit}')
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with (open(self.part, 'ab' if self.have else 'wb') as file,
              tqdm.wrapattr(file, 'write', whole, desc=self.path.name, initial=self.have) as part):
            if not self.have:  # what belonged to another ETag is gone
                self.record.write_text(response.headers.get('ETag', ''), 'latin-1')
            while data and self.have <= limit:
                part.write(data)
                self.have += len(data)
                data = response.raw.read1(CHUNK)  # what has come; iter_content would lose it at a break
        if self.have > limit:
            self.part.unlink()
            raise self.refusal(f'more than {limit} bytes came')


def sha256_of(path):
    result = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            result.update(chunk)
    return result.hexdigest()


if __name__ == '__main__':
    cli.run(download_model)
