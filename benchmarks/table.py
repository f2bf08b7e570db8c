"""The table that the benchmarks print, and what it says of the machine and of the peers."""
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys

PEERS = {  # package: its name to pip
    'transformers': 'transformers', 'torch': 'torch', 'ctranslate2': 'ctranslate2',
    'llama_cpp': 'llama-cpp-python', 'gguf': 'gguf', 'openvino_genai': 'openvino-genai',
    'openvino_tokenizers': 'openvino-tokenizers', 'optimum': 'optimum-intel'}
INSTRUCTIONS = {'amx_tile': 'AMX', 'avx512_bf16': 'AVX-512 with bfloat16 and int8',
                'avx512_vnni': 'AVX-512 with int8', 'avx512f': 'AVX-512', 'avx_vnni': 'AVX2 with int8',
                'avx2': 'AVX2'}
REMEDY = f'{sys.executable} -m pip install -r benchmarks/requirements.txt'
TICKS = os.sysconf('SC_CLK_TCK')


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def versions():
    yield f'Python {sys.version.split()[0]}'
    for name in ('tensorflow', 'tensorflow-cpu', *PEERS.values()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f'{name} {importlib.metadata.version(name)}'


def processor():  # -> its name, and the best instructions that it has for products
    try:
        with open('/proc/cpuinfo', encoding='ascii') as file:
            pairs = [line.split(':', 1) for line in file if ':' in line]
    except OSError:  # not Linux
        return platform.processor() or 'an unknown processor'
    lines = {key.strip(): value.strip() for key, value in pairs}
    flags = lines.get('flags', '').split()
    best = next((words for flag, words in INSTRUCTIONS.items() if flag in flags), 'without AVX2')
    return f'{lines.get("model name", platform.machine())} ({best})'


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; None for a figure that could not be had, and note says why.

    least, most: the ratio of ours to the peer's that is aimed at.
    """
    work: str
    ours: float | None
    peer: float | None
    unit: str
    least: float | None = None
    most: float | None = None
    note: str = ''

    def cells(self):
        ratio = self.ours / self.peer if self.ours and self.peer else None
        aim, reached = '-', None
        if self.least:
            aim, reached = f'≥ {self.least:g}×', ratio and ratio >= self.least
        elif self.most:
            aim, reached = f'≤ {self.most:g}×', ratio and ratio <= self.most
        return (self.work, self.figure(self.ours), self.figure(self.peer), f'{ratio:.2f}×' if ratio else '-',
                aim + {True: ', yes', False: ', no'}.get(reached, ''))

    def figure(self, value):
        digits = 0 if value is None or value >= 100 else 1 if value >= 10 else 2
        return '-' if value is None else f'{value:,.{digits}f} {self.unit}'


class Others:
    """The share of the cores that other processes take from now on; None where the system does not tell."""

    def __init__(self):
        self.before = self.times()

    @staticmethod
    def times():  # -> seconds of all cores, of their work, of their work for this process and its children
        try:
            with open('/proc/stat', encoding='ascii') as file:
                user, nice, system, idle, waiting, *interrupts = map(int, file.readline().split()[1:9])
        except OSError:
            return None
        busy = user + nice + system + sum(interrupts)
        return [(busy + idle + waiting) / TICKS, busy / TICKS, sum(os.times()[:4])]

    @property
    def share(self):
        after = self.times()
        if not after:
            return None
        total, busy, own = (b - a for a, b in zip(self.before, after, strict=True))
        return max(0.0, busy - own) / max(total, 1e-9)


def show(measure_rows):
    """Prints the rows of measure_rows() as a Markdown table; below it versions, and missing packages."""
    others = Others()
    rows = list(measure_rows())
    lines = [('work', 'ours', 'peer', 'ratio', 'to reach'), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for i, cells in enumerate(lines):
        print('|', ' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), '|')
        if i == 0:
            print('|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    print(f'\nMedians, on {os.cpu_count()} cores of {processor()}; {", ".join(versions())}.')
    if others.share is not None:
        print(f'Other processes took {others.share:.0%} of the cores meanwhile'
              + ('; measure again on an idle machine.' if others.share > 0.05 else '.'))
    for note in dict.fromkeys(row.note for row in rows if row.note):
        print(note)
    if missing := [pip_name for name, pip_name in PEERS.items() if not installed(name)]:
        print(f'Not installed: {", ".join(missing)}; for the figures of all peers: {REMEDY}')
