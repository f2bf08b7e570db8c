"""download_model.py against a real server on this machine, which answers as each test scripts it."""
import base64
import contextlib
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
from tiny_vocab import shared

import download_model
from errors import InputError
from storage.paths import MODEL_FILES

BIG = 'model.ckpt.data-00000-of-00001'
CUT = 5000  # where a transfer of BIG breaks off
FILES = {
    'checkpoint': b'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n',
    'encoder.json': b'{"a": 0, "b": 1}',
    'hparams.json': b'{"n_vocab": 2}',
    BIG: bytes(range(256)) * 40,
    'model.ckpt.index': b'\0index',
    'model.ckpt.meta': b'\0meta',
    'vocab.bpe': b'#version: 0.2\na b\n',
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a GET by the next entry of server.script[file], or else as a good server does."""
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.name = self.path.rpartition('/')[2]
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        script = self.server.script.get(self.name)
        (script.pop(0) if script and self.command == 'GET' else serve())(self)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def reply(status=200, body=b'', **headers):
    """An answer given as it is; Content_Length=None leaves that header out."""
    def answer(handler):
        handler.send_response(status)
        for name, value in {'Content_Length': len(body), 'Connection': 'close', **headers}.items():
            if value is not None:
                handler.send_header(name.replace('_', '-'), str(value))
        handler.end_headers()
        if handler.command == 'GET':
            handler.wfile.write(body)
        handler.close_connection = True
    return answer


def serve(cut=None, ranges=True, then=lambda handler: None, **headers):
    """The answer of a good server, which breaks off at byte `cut` of the file if given."""
    def answer(handler):
        body, etag = handler.server.files[handler.name], handler.server.etag
        asked, start, status = handler.headers.get('Range'), 0, 200
        known = {'ETag': etag, **headers}
        if ranges and asked and handler.headers.get('If-Range') == etag:
            start, status = int(asked.removeprefix('bytes=').removesuffix('-')), 206
            if start >= len(body):
                return reply(416, Content_Range=f'bytes */{len(body)}', **known)(handler)
            known['Content_Range'] = f'bytes {start}-{len(body) - 1}/{len(body)}'
        reply(status, body[start:cut], Content_Length=len(body) - start, **known)(handler)
        return then(handler)
    return answer


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.files, self.script, self.seen, self.sent = dict(FILES), {}, [], []
        self.etag = '"1"'
        self.over = threading.Event()

    def gets(self, name):  # -> their headers
        return [headers for method, path,
                headers in self.seen if method == 'GET' and path.endswith(f'/{name}')]


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '*')
    monkeypatch.delenv('GPT2_BASE_URL', raising=False)
    monkeypatch.setattr(download_model, 'BACKOFF', 0)
    monkeypatch.setattr(download_model, 'KNOWN',
                        {name: known_of(name) for name in ('encoder.json', 'vocab.bpe')})


def known_of(name, summed=True):
    return len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest() if summed else ''


@pytest.fixture
def folder(tmp_path, server):
    """Where 124M goes; after every test, what stands there under a final name is whole."""
    folder = tmp_path / 'models' / '124M'
    yield folder
    for name in MODEL_FILES:
        assert not (folder / name).exists() or (folder / name).read_bytes() == server.files[name]


def download(server, folder, name='124M'):
    download_model.download_model(name, str(folder.parent), server.url)


def refused(server, folder, name='124M'):  # -> message
    """Downloads, expects the one-line error, and that the file at fault is not there."""
    with pytest.raises(InputError) as error:
        download(server, folder, name)
    assert '\n' not in str(error.value)
    assert not (folder / server.seen[-1][1].rpartition('/')[2]).exists()
    return str(error.value)


def assert_complete(server, folder):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == server.files


def break_off(server, folder, monkeypatch, **headers):
    """A run that ends at byte CUT of BIG, as if it had been stopped there."""
    server.script[BIG] = [serve(cut=CUT, **headers)]
    with monkeypatch.context() as patch:
        patch.setattr(download_model, 'ATTEMPTS', 1)
        refused(server, folder)
    assert (folder / f'{BIG}.part').stat().st_size == CUT
    server.seen.clear()


def test_good_download_tells_where_it_is(server, folder, capsys):
    download(server, folder)
    assert_complete(server, folder)
    assert all(headers['Accept-Encoding'] == 'identity' for _, _, headers in server.seen)
    assert capsys.readouterr().err.splitlines()[-1] == f'124M is in {folder}'


def test_whole_model_stands_without_a_server(server, folder):
    download(server, folder)
    download_model.download_model('124M', str(folder.parent), 'http://127.0.0.1:1')
    assert_complete(server, folder)


@pytest.mark.parametrize('summed', [False, True])
@pytest.mark.parametrize('name', ['hparams.json', BIG])
def test_file_of_another_length_than_the_released_is_fetched_anew(server, folder, know, name, summed):
    know(name, summed=summed)
    download(server, folder)
    (folder / name).write_bytes(FILES[name][:-1])
    server.seen.clear()
    download(server, folder)
    assert list(asides(folder).values()) == [FILES[name][:-1]]
    assert (folder / name).read_bytes() == FILES[name]
    assert [path for _, path, _ in server.seen] == [f'/124M/{name}']


def test_truncation_is_resumed_with_the_rest_only(server, folder):
    server.script[BIG] = [serve(cut=CUT)]
    download(server, folder)
    assert_complete(server, folder)
    first, second = server.gets(BIG)
    assert 'Range' not in first
    assert (second['Range'], second['If-Range']) == (f'bytes={CUT}-', '"1"')


def test_stall_is_resumed(server, folder, monkeypatch):
    monkeypatch.setattr(download_model, 'TIMEOUTS', (10, 0.5))
    server.script[BIG] = [serve(cut=CUT, then=lambda handler: handler.server.over.wait(20))]
    download(server, folder)
    assert_complete(server, folder)
    assert server.gets(BIG)[1]['Range'] == f'bytes={CUT}-'


def test_progress_resets_the_count_of_attempts(server, folder):
    server.script[BIG] = [serve(cut=100 * i) for i in range(1, 2 * download_model.ATTEMPTS)]
    download(server, folder)
    assert_complete(server, folder)


def test_attempts_without_progress_end_and_keep_the_part(server, folder):
    server.script[BIG] = [serve(cut=CUT)] + [reply(503)] * 99
    assert 'status 503' in refused(server, folder)
    assert len(server.gets(BIG)) == download_model.ATTEMPTS
    assert (folder / f'{BIG}.part').read_bytes() == FILES[BIG][:CUT]


def test_unreachable_server(tmp_path):
    with pytest.raises(InputError, match=r'refused.*run again'):
        download_model.download_model('124M', str(tmp_path), 'http://127.0.0.1:1')
    assert not list(tmp_path.iterdir())


def test_next_run_resumes(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    download(server, folder)
    assert_complete(server, folder)
    assert [headers['Range'] for headers in server.gets(BIG)] == [f'bytes={CUT}-']


def test_next_run_starts_again_when_the_etag_has_changed(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    server.files[BIG], server.etag = FILES[BIG][::-1], '"2"'
    download(server, folder)
    assert_complete(server, folder)
    assert [headers['If-Range'] for headers in server.gets(BIG)] == ['"1"']


def test_two_versions_are_not_mixed_by_a_server_that_ignores_if_range(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    new = FILES[BIG][::-1]
    server.files[BIG], server.etag = new, '"2"'
    server.script[BIG] = [reply(206, new[CUT:], ETag='"2"',
                                Content_Range=f'bytes {CUT}-{len(new) - 1}/{len(new)}')]
    download(server, folder)
    assert_complete(server, folder)


def test_part_of_an_unknown_version_is_discarded(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    (folder / f'{BIG}.part.etag').unlink()
    download(server, folder)
    assert_complete(server, folder)
    assert ['Range' in headers for headers in server.gets(BIG)] == [False]


@pytest.mark.parametrize('etag', ['W/"1"', None])
def test_without_a_version_that_if_range_can_compare_all_is_fetched_again(server, folder, etag):
    server.script[BIG] = [serve(cut=CUT, ETag=etag)]
    download(server, folder)
    assert_complete(server, folder)
    assert not server.gets(BIG)[1].keys() & {'If-Range', 'Range'}


def test_server_without_ranges_starts_from_zero(server, folder):
    server.script[BIG] = [serve(cut=CUT), serve(ranges=False)]
    download(server, folder)
    assert_complete(server, folder)


def test_server_without_ranges_that_always_breaks_is_left(server, folder):
    server.script[BIG] = [serve(cut=CUT, ranges=False) for _ in range(99)]
    assert 'run again' in refused(server, folder)
    assert len(server.gets(BIG)) == download_model.ATTEMPTS


@pytest.mark.parametrize('content_range', [
    f'bytes {CUT - 1}-10239/10240', f'bytes {CUT}-10238/10240', f'bytes {CUT}-10239/*',
    f'bytes {CUT}-9999/10000',
    'pages 1-2', None,
])
def test_content_range_that_does_not_match_starts_from_zero(server, folder, content_range):
    server.script[BIG] = [serve(cut=CUT), reply(206, FILES[BIG][CUT:], Content_Range=content_range)]
    download(server, folder)
    assert_complete(server, folder)
    assert ['Range' in headers for headers in server.gets(BIG)] == [False, True, False]


def test_206_that_was_not_asked_for(server, folder):
    server.script[BIG] = [reply(206, b'rest', Content_Range='bytes 0-3/10240')]
    assert 'status 206' in refused(server, folder)


def test_416_for_a_part_that_is_whole_means_done(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    (folder / f'{BIG}.part').write_bytes(FILES[BIG])
    download(server, folder)
    assert_complete(server, folder)
    assert [headers['Range'] for headers in server.gets(BIG)] == [f'bytes={len(FILES[BIG])}-']


@pytest.mark.parametrize('headers', [
    {'Content_Range': f'bytes */{CUT - 1}'}, {}, {'Content_Range': f'bytes */{CUT}', 'ETag': '"2"'},
])
def test_416_for_another_part_starts_again(server, folder, monkeypatch, headers):
    break_off(server, folder, monkeypatch)
    server.script[BIG] = [reply(416, **headers)]
    download(server, folder)
    assert_complete(server, folder)
    assert ['Range' in headers for headers in server.gets(BIG)] == [True, False]


@pytest.mark.parametrize('status', [500, 503, 429, 408])
def test_passing_status_is_retried(server, folder, status):
    server.script['hparams.json'] = [reply(status, b'<html>sorry', Content_Type='text/html')]
    download(server, folder)
    assert_complete(server, folder)


@pytest.mark.parametrize('status', [400, 403, 404, 410, 204, 304])
def test_final_status_ends_at_once(server, folder, status):
    server.script[BIG] = [reply(status)] * 9
    message = refused(server, folder)
    assert f'{server.url}/124M/{BIG}: status {status}' in message and '--base_url' in message
    assert len(server.gets(BIG)) == 1


@pytest.fixture
def waits(monkeypatch):
    """The seconds that are waited between attempts, which this does not do."""
    seconds = []
    monkeypatch.setattr(download_model.time, 'sleep', seconds.append)
    return seconds


def test_back_off_is_exponential(server, folder, monkeypatch, waits):
    monkeypatch.setattr(download_model, 'BACKOFF', 1)
    server.script[BIG] = [reply(503)] * 4
    download(server, folder)
    assert waits == [1, 2, 4, 8]


def test_retry_after_is_respected_up_to_a_minute(server, folder, waits):
    for asked in ('7', '3600', '9' * 5000, '-1', 'soon', 'Thu, 14 Feb 2019 17:00:00 GMT'):
        server.script[BIG] = [reply(503, Retry_After=asked), serve(cut=CUT)]  # a break asks for no wait
        download(server, folder)
        (folder / BIG).unlink()
    assert waits == [7, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0]


def test_what_the_disk_cannot_hold_is_refused_before_it_comes(server, folder, monkeypatch):
    usage = shutil.disk_usage(folder.parent.parent)
    monkeypatch.setattr(download_model.shutil, 'disk_usage', lambda path: usage._replace(free=10000))
    assert '10,240 bytes are to come, more than the disk has free' in refused(server, folder)
    assert len(server.gets(BIG)) == 1


def test_redirect_is_followed(server, folder):
    server.script[BIG] = [reply(302, Location='/elsewhere/model.ckpt.index'), serve(cut=CUT)]
    server.script['model.ckpt.index'] = [reply(302, Location=f'/elsewhere/{BIG}')]
    server.files['model.ckpt.index'] = FILES[BIG]
    download(server, folder)
    assert_complete(server, folder)


@pytest.mark.parametrize('target',
                         ['file:///etc/hostname', 'ftp://127.0.0.1/x', 'http://[', 'http://127.0.0.1:99999/'])
def test_redirect_elsewhere_is_refused(server, folder, target):
    server.script[BIG] = [reply(302, Location=target)] * 9
    assert 'it must be http or https' in refused(server, folder)
    assert len(server.gets(BIG)) == 1


@pytest.mark.parametrize('target, message', [
    ('https://safe.test/elsewhere/', None), ('/elsewhere/', None), ('//safe.test/elsewhere/', None),
    ('http://safe.test/', "'http://safe.test/.* stay https"), ('HTTP://safe.test/', 'stay https')])
@pytest.mark.parametrize('scheme', ['https', 'HTTPS'])
def test_https_does_not_lead_to_http(server, folder, monkeypatch, scheme, target, message):
    """Any scheme of safe.test is answered by this server."""
    def send(self, request, **options):
        asked, request.url = request.url, re.sub('(?i)^https?://safe.test', server.url, request.url)
        response = real_send(self, request, **options)
        request.url = response.url = asked
        return response
    real_send = download_model.requests.adapters.HTTPAdapter.send
    monkeypatch.setattr(download_model.requests.adapters.HTTPAdapter, 'send', send)
    server.script[BIG] = [reply(302, Location=f'{target}{BIG}')]
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        download_model.download_model('124M', str(folder.parent), f'{scheme}://safe.test')
    assert len(server.gets(BIG)) == (1 if message else 2)


def test_what_reads_as_it_comes_is_asked_for():
    with open(os.path.join(os.path.dirname(download_model.__file__), 'requirements.txt')) as file:
        least = re.search(r'^urllib3>=(\d+)\.(\d+)', file.read(), re.MULTILINE)
    assert tuple(map(int, least.groups())) >= (2, 2)  # the first with read1


def drip(handler, *parts):  # -> the number of bytes that were taken; sends without end
    sent = 0
    with contextlib.suppress(OSError):
        while not handler.server.over.is_set():
            for part in parts:
                sent += handler.connection.send(part)
    handler.server.sent.append(sent)
    handler.close_connection = True


def endless(status=200, chunked=False, **headers):
    def answer(handler):
        reply(status, Content_Length=None, **headers,
              **({'Transfer_Encoding': 'chunked'} if chunked else {}))(handler)
        block = bytes(1 << 16)
        drip(handler, *([b'10000\r\n', block, b'\r\n'] if chunked else [block]))
    return answer


def test_what_comes_with_a_redirect_is_not_read(server, folder):
    server.script[BIG] = [endless(302, Location=f'/elsewhere/{BIG}')]
    download(server, folder)
    server.shutdown()
    assert_complete(server, folder)


@pytest.mark.parametrize('name', MODEL_FILES)
def test_data_without_end_is_refused(server, folder, monkeypatch, name):
    monkeypatch.setattr(download_model, 'MAX_BYTES', 1 << 20)
    monkeypatch.setattr(download_model, 'MAX_DATA_BYTES', 1 << 20)
    monkeypatch.setattr(download_model, 'KNOWN', {})
    server.script[name] = [endless(chunked=True)] * 9
    assert 'more than 1048576 bytes came' in refused(server, folder)
    assert not (folder / f'{name}.part').exists()


@pytest.mark.parametrize('name, length',
                         [('hparams.json', 10**9), ('vocab.bpe', 10**9), (BIG, 10**12), (BIG, 10**17)])
def test_an_announced_length_out_of_proportion_is_refused(server, folder, monkeypatch, name, length):
    server.script[name] = [reply(200, b'x', Content_Length=length)] * 9
    monkeypatch.setattr(download_model, 'KNOWN', {})
    assert f'{length} bytes are announced (Content-Length), expected at most' in refused(server, folder)
    assert len(server.gets(name)) == 1


def test_a_rest_out_of_proportion_is_refused(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    server.script[BIG] = [reply(206, b'x', Content_Range=f'bytes {CUT}-{10**17 - 1}/{10**17}',
                                Content_Length=10**17 - CUT)]
    assert 'are announced' in refused(server, folder)
    assert (folder / f'{BIG}.part').stat().st_size == CUT


def test_largest_files_leave_room_for_the_released():
    sizes = {'checkpoint': 77, 'encoder.json': 1_042_301, 'hparams.json': 91, BIG: 6_230_781_952,
             'model.ckpt.index': 20_679, 'model.ckpt.meta': 1_844_187, 'vocab.bpe': 456_318}  # of 1558M
    for name, size in sizes.items():
        assert 10 * size <= (download_model.MAX_DATA_BYTES if name == BIG else download_model.MAX_BYTES)


@pytest.mark.parametrize('etag', ['"' + 'x' * 60000 + '"', '"a\x85b"', '"\xff"', '\x0b'])
def test_a_version_that_cannot_be_sent_back_is_not_kept(server, folder, etag):
    server.etag = etag
    server.script[BIG] = [serve(cut=CUT)]
    download(server, folder)
    assert_complete(server, folder)
    assert ['Range' in headers for headers in server.gets(BIG)] == [False, False]


def test_headers_without_end_are_given_up(server, folder):
    def answer(handler):
        handler.wfile.write(b'HTTP/1.1 200 OK\r\n')
        drip(handler, b'X-Header: x\r\n' * 1000)
    server.script['checkpoint'] = [answer] * 9
    assert 'gave up after 5 attempts' in refused(server, folder)


def test_a_name_that_the_server_gives_is_not_used(server, folder):
    server.script['hparams.json'] = [serve(Content_Disposition='attachment; filename="../../evil"')]
    download(server, folder)
    assert_complete(server, folder)
    assert sorted(os.listdir(folder.parent.parent)) == ['models']


def test_redirect_without_end_is_refused(server, folder):
    server.script[BIG] = [reply(302, Location=BIG)] * 99
    assert 'redirects' in refused(server, folder)
    assert len(server.gets(BIG)) == 11


def chunked(body, end=b'0\r\n\r\n'):
    return b'%x\r\n%s\r\n' % (len(body), body) + end


def test_announced_longer_than_sent(server, folder):
    server.script['hparams.json'] = [reply(200, FILES['hparams.json'], Content_Length=99)] * 99
    assert 'gave up after' in refused(server, folder)
    assert len(server.gets('hparams.json')) == download_model.ATTEMPTS


def test_chunked_needs_no_length_and_its_truncation_is_seen(server, folder):
    headers = {'Content_Length': None, 'Transfer_Encoding': 'chunked'}
    server.script[BIG] = [reply(200, chunked(FILES[BIG][:CUT], b''), **headers),
                          reply(200, chunked(FILES[BIG]), **headers)]
    download(server, folder)
    assert_complete(server, folder)


def test_missing_length_is_refused(server, folder):
    server.script['hparams.json'] = [reply(200, FILES['hparams.json'], Content_Length=None)]
    assert 'hparams.json: None bytes are announced (Content-Length)' in refused(server, folder)
    assert (folder / 'checkpoint').exists()


@pytest.mark.parametrize('body, headers', [
    (b'hello', {'Content_Type': 'text/html; charset=utf-8'}),
    (b'\n <!DOCTYPE html>', {}),
    (b'<HTML>', {}),
    (b'\xef\xbb\xbf<?xml version="1.0"?>', {'Content_Type': 'application/octet-stream'}),
    (b'', {}),
])
def test_web_page_in_place_of_a_file(server, folder, body, headers):
    server.script[BIG] = [reply(200, body, **headers)] * 9
    assert 'web page' in refused(server, folder)
    assert len(server.gets(BIG)) == 1
    assert not (folder / f'{BIG}.part').exists()


def test_login_page_leaves_the_part(server, folder, monkeypatch):
    break_off(server, folder, monkeypatch)
    server.script[BIG] = [reply(200, b'<html>', Content_Type='text/html')]
    refused(server, folder)
    assert (folder / f'{BIG}.part').read_bytes() == FILES[BIG][:CUT]


def test_wrong_vocabulary_does_not_stay_under_its_name(server, folder):
    folder.mkdir(parents=True)
    (folder / 'vocab.bpe').write_bytes(b'#version: 0.2\n')
    server.script['vocab.bpe'] = [reply(404)]
    refused(server, folder)


# Released files, of which length and sum are known

RELEASED = {'124M': (768, 12), '355M': (1024, 24), '774M': (1280, 36), '1558M': (1600, 48)}  # n_embd, n_layer
KNOWN = download_model.KNOWN  # before `settings` takes its place


@pytest.fixture
def know(monkeypatch):
    def know(*names, summed=True):
        monkeypatch.setattr(download_model, 'KNOWN', {name: known_of(name, summed) for name in names})
    return know


def asides(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if '.sha256-' in path.name}


def test_what_is_known_fits_what_can_be_worked_out():
    for name, (width, layers) in RELEASED.items():
        weights = (50257 + 1024 + 2) * width + layers * (12 * width + 13) * width
        assert KNOWN[f'{name}/{BIG}'][0] == 4 * weights
    hparams = (b'{\n  "n_vocab": 50257,\n  "n_ctx": 1024,\n'
               b'  "n_embd": 768,\n  "n_head": 12,\n  "n_layer": 12\n}\n')
    for name, content in (('124M/hparams.json', hparams), ('checkpoint', FILES['checkpoint'])):
        assert KNOWN[name] == (len(content), hashlib.sha256(content).hexdigest())
    assert {key.rpartition('/')[2] for key in KNOWN} <= set(MODEL_FILES)


@pytest.mark.parametrize('name', ['encoder.json', 'vocab.bpe'])
def test_what_is_known_of_the_vocabulary_is_true(name):
    with open(shared('vocab', name), 'rb') as file:
        body = file.read()
    assert KNOWN[name] == (len(body), hashlib.sha256(body).hexdigest())


def test_a_model_that_is_known_whole_needs_no_server(server, folder, know):
    know(*FILES)
    download(server, folder)
    server.seen.clear()
    download(server, folder)
    assert server.seen == []


def test_another_sum_is_refused_and_kept_aside(server, folder, know):
    know(BIG)
    expected, server.files[BIG] = hashlib.sha256(FILES[BIG]).hexdigest(), FILES[BIG][::-1]
    sum_ = hashlib.sha256(FILES[BIG][::-1]).hexdigest()
    message = refused(server, folder)
    assert f'SHA-256 is {sum_}, expected {expected}' in message
    assert asides(folder) == {f'{BIG}.sha256-{sum_[:16]}': FILES[BIG][::-1]}
    assert next(iter(asides(folder))) in message
    assert len(server.gets(BIG)) == 1 and not list(folder.glob('*.part*'))


def md5(body):
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def test_another_md5_than_the_first_answer_announced_is_refused_and_kept_aside(server, folder):
    rest = serve(Content_MD5=md5(FILES[BIG][CUT:]))  # of a 206, which does not count
    server.script[BIG] = [serve(cut=CUT, Content_MD5=md5(b'other')), rest]
    message = refused(server, folder)
    assert f'MD5 is {md5(FILES[BIG])}, expected {md5(b"other")} (Content-MD5)' in message
    assert list(asides(folder).values()) == [FILES[BIG]] and next(iter(asides(folder))) in message
    assert not list(folder.glob('*.part*'))
    server.script[BIG] = [serve(cut=CUT, Content_MD5=md5(FILES[BIG])), rest]
    download(server, folder)
    assert (folder / BIG).read_bytes() == FILES[BIG]
    assert 'Range' in server.gets(BIG)[-1] and not list(folder.glob('*.part*'))


def test_another_length_is_refused_before_it_comes(server, folder, know):
    know(BIG)
    server.files[BIG] = FILES[BIG] + b'x'
    assert '10241 bytes are announced (Content-Length), expected at most 10240' in refused(server, folder)
    assert len(server.gets(BIG)) == 1 and not list(folder.glob(f'{BIG}*'))


def test_chunks_that_are_more_than_the_released_file_are_not_taken(server, folder, know):
    know(BIG)
    server.script[BIG] = [reply(200, chunked(FILES[BIG] + b'x'), Content_Length=None,
                                Transfer_Encoding='chunked')]
    assert 'more than 10240 bytes came' in refused(server, folder)
    assert len(server.gets(BIG)) == 1 and not (folder / f'{BIG}.part').exists()


@pytest.mark.parametrize('body', [FILES[BIG][::-1], b'somebody\'s own'])
def test_what_stood_under_the_name_of_a_released_file_is_not_lost(server, folder, know, capsys, body):
    know(BIG)
    folder.mkdir(parents=True)
    (folder / BIG).write_bytes(body)
    download(server, folder)
    assert list(asides(folder).values()) == [body]
    assert f'{folder / BIG} is not as released: kept as {folder / BIG}.sha256-' in capsys.readouterr().err


def test_models_of_other_names_are_not_compared(server, folder, know):
    know(*FILES)
    server.files.update({'vocab.bpe': b'#version: 0.2\nof its own\n', BIG: b'its own'})
    download(server, folder.parent / 'mine', 'mine')
    assert_complete(server, folder.parent / 'mine')


def test_compressed_answer_is_refused(server, folder):
    server.script[BIG] = [serve(Content_Encoding='gzip')]
    assert 'compressed data' in refused(server, folder)


def test_alias(server, folder, capsys):
    download(server, folder, '117M')
    assert_complete(server, folder)
    assert capsys.readouterr().err.splitlines()[-1] == f'124M is in {folder}'


def test_mirror_by_environment_may_hold_other_names(server, folder, monkeypatch):
    monkeypatch.setenv('GPT2_BASE_URL', server.url + '/')
    server.files['vocab.bpe'] = b'#version: 0.2\nof its own\n'
    download_model.download_model('my model', str(folder.parent))
    assert_complete(server, folder.parent / 'my model')
    assert server.seen[0][1] == '/my%20model/checkpoint'


def test_unknown_name_lists_the_released_ones(tmp_path):
    with pytest.raises(InputError, match='124M, 355M, 774M, 1558M'):
        download_model.download_model('125M', str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['../x', '..', '.', '', 'a/b', '/etc', '../../etc', 'a\\b', 'a\0b', 'a\nb',
                                  'a\udcffb'])
def test_name_that_leads_elsewhere(server, tmp_path, name):
    with pytest.raises(InputError, match='--model_name'):
        download_model.download_model(name, str(tmp_path / 'models'), server.url)
    assert not server.seen and not list(tmp_path.iterdir())


def test_base_url_that_is_none(tmp_path):
    with pytest.raises(InputError, match='it must be http or https'):
        download_model.download_model('124M', str(tmp_path), 'file:///mirror')


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'models').write_text('a file')
    with pytest.raises(OSError, match=f"directory: '{tmp_path / 'models'}"):
        download_model.download_model('124M', str(tmp_path / 'models'), server.url)


def run_script(server, folder):
    return subprocess.run([sys.executable, os.path.abspath(download_model.__file__), 'mine', '--base_url',
                           server.url],
                          cwd=folder, capture_output=True, text=True, timeout=60)


def test_script(server, tmp_path):
    server.script['checkpoint'] = [reply(404)]
    result = run_script(server, tmp_path)
    assert result.returncode == 2 and result.stdout == ''
    assert result.stderr.startswith(f'download_model.py: error: {server.url}/mine/checkpoint: status 404')
    assert result.stderr.count('\n') == 1 and 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())

    result = run_script(server, tmp_path)
    assert result.returncode == 0 and result.stdout == ''
    assert result.stderr.splitlines()[-1] == f'mine is in {os.path.join("models", "mine")}'
    assert_complete(server, tmp_path / 'models' / 'mine')


def test_a_folder_where_tensorflow_reads_no_checkpoint_is_refused_before_anything_comes(tmp_path):
    with pytest.raises(InputError, match=r"has the character '\['"):
        download_model.download_model('124M', str(tmp_path / 'a[b]'), 'http://localhost:9/models')
    assert not os.listdir(tmp_path)
