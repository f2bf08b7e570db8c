#!/usr/bin/env python3
"""Fetches a released model: `./download_model.py 124M` puts its seven files into models/124M.

Until a file is whole it is <file>.part, which the next run resumes, with ETag and Content-MD5 in
<file>.part.etag. A file not as released becomes <file>.sha256-<its own>.
"""
import base64
import hashlib
import os
import pathlib
import re
import shutil
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))
from command_line import cli

import requests
import urllib3
from tqdm import tqdm

from errors import InputError, require
from storage import paths

OPENAI = 'https://openaipublic.blob.core.windows.net/gpt-2/models'
DATA = 'model.ckpt.data-00000-of-00001'
KNOWN = {  # bytes; SHA-256, if published
    'checkpoint': (77, 'dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb'),
    'encoder.json': (1_042_301, '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783'),
    'vocab.bpe': (456_318, '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5'),
    '124M/hparams.json': (90, 'd9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318'),
    f'124M/{DATA}': (497_759_232, '2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118'),
    '124M/model.ckpt.index': (5_215, '71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687'),
    '124M/model.ckpt.meta': (471_155, '4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b'),
    f'355M/{DATA}': (1_419_292_672, ''), f'774M/{DATA}': (3_096_120_320, ''),
    f'1558M/{DATA}': (6_230_444_800, '')}
MAX_BYTES, MAX_DATA_BYTES = 1 << 28, 1 << 36  # of a file; of weights
CHUNK = 1 << 16  # bytes read at a time
TIMEOUTS = 10, 30  # seconds to connect, and without a byte
ATTEMPTS, BACKOFF = 5, 1  # without progress; seconds before the second, then doubled


def download_model(model_name: str, models_dir: str = 'models', base_url: str | None = None):
    """Downloads a model, unless it is there; resumes what broke off. Raises InputError, OSError.

    Args:
        model_name: 124M, 355M, 774M or 1558M; with a base_url any it has.
        models_dir: where models are.
        base_url: has <model_name>/<file>; None for GPT2_BASE_URL or OpenAI's storage.
    """
    mirror, name = base_url or os.environ.get('GPT2_BASE_URL'), paths.ALIASES.get(model_name, model_name)
    known = KNOWN if name in paths.RELEASED_MODELS else {}
    require(name.isprintable() and (mirror or known), f'unknown --model_name {name!r}; released are '
            f'{", ".join(paths.RELEASED_MODELS)}; others need a --base_url')
    folder = pathlib.Path(paths.for_tensorflow(paths.child(models_dir, name, '--model_name')))
    url = f'{(mirror or OPENAI).rstrip("/")}/{urllib.parse.quote(name)}'
    with requests.Session() as session:
        session.headers['Accept-Encoding'] = 'identity'  # lengths and ranges are the file's
        session.hooks['response'].append(close_redirect)
        session.max_redirects = 10
        if url.lower().startswith('https:'):
            del session.adapters['http://']  # so that no redirect leads there
        for file in paths.MODEL_FILES:
            facts = known.get(f'{name}/{file}', known.get(file, (0, '')))
            Download(session, f'{url}/{file}', folder / file, *facts).fetch()
    print(f'{name} is in {folder}', file=sys.stderr)


def close_redirect(response, **_):
    if response.is_redirect:
        urllib3.util.parse_url(response.headers['Location'])  # raises LocationParseError
        response.close()  # requests would read its body, which may have no end


class Download:
    """A file. length, sha256: as released; 0 and '' if not known."""

    def __init__(self, session, url, path, length, sha256):
        self.session, self.url, self.path, self.length, self.sha256 = session, url, path, length, sha256
        self.part, self.record = pathlib.Path(f'{path}.part'), pathlib.Path(f'{path}.part.etag')
        self.md5 = ''

    def fetch(self):
        if self.path.exists():
            if not self.fault(self.path):
                return
            print(f'{self.path} is not as released: kept as {self.set_aside(self.path)}', file=sys.stderr)
        self.transfer()
        if fault := self.fault(self.part):
            raise InputError(f'{self.url}: {fault}; kept as {self.set_aside(self.part)}; '
                             'give another --base_url')
        paths.synchronize(self.part)
        self.part.replace(self.path)
        self.record.unlink()

    def fault(self, path):  # -> '' if a file is as released, as far as is known
        length = path.stat().st_size
        if self.length not in (0, length):
            return f'has {length:,} bytes, expected {self.length:,}'
        if self.sha256 and (sha256 := digest(path, 'sha256').hex()) != self.sha256:
            return f'SHA-256 is {sha256}, expected {self.sha256}'
        if self.md5 and (md5 := base64.b64encode(digest(path, 'md5')).decode()) != self.md5:
            return f'MD5 is {md5}, expected {self.md5} (Content-MD5)'
        return ''

    def set_aside(self, path):  # -> new path, which no other content has
        self.record.unlink(missing_ok=True)
        return path.replace(f'{self.path}.sha256-{digest(path, "sha256").hex()[:16]}')

    def refusal(self, problem):
        return InputError(f'{self.url}: {problem}; check --base_url (or GPT2_BASE_URL)')

    def transfer(self):  # completes the part
        longest = failures = 0
        while True:
            try:
                return self.attempt()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                if isinstance(error, (ValueError, requests.TooManyRedirects)):  # about the address
                    raise self.refusal(f'{error} (it must be http or https, and stay https)') from error
                # Without ranges, attempts start from zero: the same length is no progress.
                failures = 1 if self.have > longest else failures + 1
                longest = max(longest, self.have)
                reason = str(error.args[0]).rsplit(': ', 1)[-1].strip('\'")')  # the innermost cause
                if failures >= ATTEMPTS:
                    raise self.refusal(f'{reason}; gave up after {ATTEMPTS} attempts, run again') from error
                wait = max(BACKOFF * 2 ** (failures - 1), self.retry_after)
                print(f'{self.url}: {reason}; next attempt in {wait} s', file=sys.stderr)
                time.sleep(wait)

    def attempt(self):  # appends to the part
        self.retry_after = 0  # seconds
        record = self.record.read_text('latin-1') if self.record.exists() else ''
        etag, _, self.md5 = record.partition('\n')
        resumes = re.fullmatch('"[!-~]{,200}"', etag) and self.part.exists()  # If-Range wants a strong one
        self.have = self.part.stat().st_size if resumes else 0
        ask = {'Range': f'bytes={self.have}-', 'If-Range': etag} if self.have else {}
        with self.session.get(self.url, headers=ask, stream=True, timeout=TIMEOUTS) as response:
            status, headers, length = response.status_code, response.headers, response.raw.length_remaining
            came = f'status {status} {response.reason}'
            if status in (408, 429) or status >= 500:
                if re.fullmatch('[0-9]{1,9}', asked := headers.get('Retry-After', '')):
                    self.retry_after = min(int(asked), 60)
                raise requests.HTTPError(came)
            if status == 200:
                self.have = 0
            elif not ask or status not in (206, 416):
                raise self.refusal(f'{came} where 200 was expected')
            else:
                end = self.have + (length or 0)
                expected = f'bytes {self.have}-{end - 1}/{end}' if status == 206 else f'bytes */{self.have}'
                if headers.get('Content-Range') != expected or headers.get('ETag', etag) != etag:
                    self.record.unlink()
                    raise requests.HTTPError('the rest does not fit; starting from zero')
            if status != 416:  # the part is whole
                self.receive(headers, response.raw, length)

    def receive(self, headers, body, length):  # appends the body; length: None if not announced
        data = body.read(1024)
        page = data.lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith((b'<!doctype', b'<html', b'<?xml'))
        page |= headers.get('Content-Type', '').startswith('text/html')
        if page or not data or headers.get('Content-Encoding', '') not in ('', 'identity'):
            raise self.refusal('a web page, compressed data or nothing came instead of the file')
        whole = None if length is None else self.have + length
        limit = self.length or (MAX_DATA_BYTES if self.path.name == DATA else MAX_BYTES)
        if (whole or 0) > limit or (whole is None and not body.chunked):
            raise self.refusal(f'{whole} bytes are announced (Content-Length), expected at most {limit}')
        self.part.parent.mkdir(parents=True, exist_ok=True)
        if (length or 0) > shutil.disk_usage(self.part.parent).free:
            raise InputError(f'{self.path}: {length:,} bytes are to come, more than the disk has free')
        with (open(self.part, 'ab' if self.have else 'wb') as file,
              tqdm.wrapattr(file, 'write', whole, desc=self.path.name, initial=self.have) as part):
            if not self.have:
                self.md5 = headers.get('Content-MD5', '')  # of a 206 it is the rest's
                self.record.write_text(f'{headers.get("ETag", "")}\n{self.md5}', 'latin-1')
            while data and self.have <= limit:
                part.write(data)
                self.have += len(data)
                data = body.read1(CHUNK)  # iter_content would lose the last bytes before a break
        if self.have > limit:
            self.part.unlink()
            self.record.unlink()
            raise self.refusal(f'more than {limit} bytes came')


def digest(path, algorithm):  # -> bytes
    result = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, 'rb') as file:
        while data := file.read(1 << 20):
            result.update(data)
    return result.digest()


if __name__ == '__main__':
    cli.run(download_model)
