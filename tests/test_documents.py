"""The documents' commands run, and the flags, files, links and versions that they name exist.

Shell commands stand in fenced blocks marked `sh`, Python in `python`, and nothing in indented blocks. Blocks
run in the order of DOCUMENTS, in one copy of the project, since later blocks use files of earlier ones.
A block marked `text` right after a block of commands shows their output: each of its lines must match a
printed line, with other numbers, and anything for `…`. Text that a model wrote is not compared: the lines
below `=== SAMPLE n ===`, and the field `text` of a JSON line.
"""
import contextlib
import dataclasses
import glob
import importlib.util
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from test_layout import FOR_EVERYBODY, NAMES, SCRIPTS, imports, module_of

pytestmark = pytest.mark.processes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIRST = ['README.md', 'docs/training.md']  # they make the runs that the others use


def find_documents():
    patterns = ('*.md', '*/*.md', 'docs/**/*.md')
    names = {os.path.relpath(path, ROOT).replace(os.sep, '/')
             for pattern in patterns for path in glob.glob(os.path.join(ROOT, pattern), recursive=True)}
    return FIRST + sorted(names.difference(FIRST))


DOCUMENTS = find_documents()
RUN = ('sh', 'python')
LANGUAGES = {*RUN, 'text', 'bibtex', 'mermaid'}

INSTALLS = 'installs from a registry'
SUITE = 'runs the tests, of which this is one'
TEST_SET = 'the test set is not here; test_evaluate.py has small ones of its formats'
RELEASED = 'needs the released weights; test_check_released.py computes the same of random ones'
SAMPLES = 'docs/sampling.md runs both scripts on this model'
NOT_RUN = {  # command: why not
    'python3 -m venv .venv': INSTALLS,
    '. .venv/bin/activate': INSTALLS,
    'pip install -r requirements.txt': INSTALLS,
    'pip install tokenizers': INSTALLS,
    'sudo apt-get install $(cat install/horovod-debian.txt)': INSTALLS,
    'make horovod': INSTALLS,
    'make test': SUITE,
    'make test-all': SUITE,
    '.venv/bin/python -m pytest tests/test_sample.py': SUITE,
    '.ci/run': SUITE,
    'make lint': '.ci/run runs it',
    'make samples': SAMPLES,
    'make curve': 'test_plot_runs.py draws one',
    'make bench': 'takes ten minutes',
    'make torture': 'takes ten minutes; the suite has short forms',
    'make check-gpu': 'needs a GPU; test_benchmarks.py computes the same on a CPU',
    'make check-released MODEL=124M': RELEASED,
    'make check-released MODEL=355M DATA=testsets': RELEASED,
    './src/generate_unconditional_samples.py --top_k 40 --nsamples 10 --batch_size 5 '
    '--output data/samples.txt': 'docs/sampling.md runs it on the model of the demo',
    './src/generate_unconditional_samples.py --model_name checkpoint/demo --seed 1 --length 400 '
    '--nsamples 12 --batch_size 12 --output gpt-2-samples/unconditional-default.txt': SAMPLES,
    './src/interactive_conditional_samples.py --model_name checkpoint/demo --seed 1 --length 400 '
    '--include_prefix --output gpt-2-samples/conditional-default.txt < gpt-2-samples/contexts.txt': SAMPLES,
    './src/evaluate.py perplexity --model_name checkpoint/demo --data "$(python3 -c '
    '''\'import sysconfig; print(sysconfig.get_path("stdlib"))')/json/*.py"''':
        'docs/evaluation.md runs the same on another text',
    'mpirun -np 4 -H localhost:4 -bind-to none -map-by slot -x NCCL_DEBUG=INFO -x LD_LIBRARY_PATH -x PATH '
    '-x PYTHONPATH=src -mca pml ob1 -mca btl ^openib ./train-horovod.py --dataset data/notes.npz '
    '--model_name checkpoint/demo --run_name many --steps 300': 'test_train_horovod.py runs it',
    'horovodrun -np 4 --gloo ./train-horovod.py --dataset data/notes.npz --model_name checkpoint/demo '
    '--run_name many --steps 300': 'test_train_horovod.py runs its like',
    './src/evaluate.py wikitext2 --data wikitext-2/ --stride 32': TEST_SET,
    './src/evaluate.py lambada --data lambada_test.jsonl': TEST_SET,
    './src/evaluate.py cbt --data CBTest/data/cbtest_CN_valid_2500ex.txt': TEST_SET,
    './src/evaluate.py hellaswag --data hellaswag_val.jsonl': TEST_SET,
    'docker run --rm -p 8501:8501 -v "$PWD/served/notes:/models/notes" -e MODEL_NAME=notes '
    'tensorflow/serving': 'needs Docker',
    '''curl http://localhost:8501/v1/models/notes:predict -d '{"signature_name": "generate", "inputs": {
    "tokens": [[51, 71, 68], [-1, 72, 82]], "length": 50,
    "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 1}}\'''':
        'needs the server of that container; test_saved_model.py asks the model',
}
INSTEAD = {  # to be quicker, or to do without the network
    'make demo': 'make demo DEMO_STEPS=20',
    '--steps 300': '--steps 3 --val_batch_count 2 --sample_every 3 --sample_length 20',
    '--steps 1000': '--steps 3 --val_batch_count 2 --sample_every 0',
    'novels/**/*.txt': 'docs/decisions/*.md',
    '--val_every 100': '--val_every 3',
    './download_model.py 124M': 'cp -r models/demo models/124M',
}
NEEDS = {'--train_vocab': 'tokenizers', 'from transformers': 'torch', 'from peft': 'peft'}  # text: a module
OTHERS_FLAGS = {'allow-run-as-root', 'oversubscribe', 'gloo', 'build-arg', 'rm', 'logdir',
                'help', 'version'}  # of other programs, and of all
TIMEOUT = 300  # seconds for a command
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Block:
    document: str
    line: int
    language: str
    text: str
    shown: str | None = None  # the block of text after it

    def __str__(self):
        return f'{self.document}:{self.line}'


def read(document):
    with open(os.path.join(ROOT, document), encoding='utf-8') as file:
        return file.read()


def blocks_of(document):
    """The fenced blocks, in order."""
    blocks, end = [], None
    text = read(document)
    for match in FENCED.finditer(text):
        follows = blocks and not text[end:match.start()].strip()
        if follows and blocks[-1].language in RUN and match[1] == 'text':
            blocks[-1].shown = match[2]
        blocks.append(Block(document, text.count('\n', 0, match.start()) + 2, match[1], match[2]))
        end = match.end()
    return blocks


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def commands_of(text):
    """The commands of a shell script, each a line or several; comments are left out."""
    command = ''
    for line in text.splitlines(keepends=True):
        command += line
        with contextlib.suppress(ValueError):  # a quotation that goes on
            words = shlex.split(command, comments=True)
            if not line.endswith('\\\n'):
                if words:
                    yield re.sub(r'\s*\\\n\s*', ' ', command).partition('  #')[0].strip()
                command = ''
    assert not command, f'{command!r} has no end'


COMMANDS = [command for block in BLOCKS if block.language == 'sh' for command in commands_of(block.text)]


# Commands

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the project, without models, runs and samples."""
    copy = tmp_path_factory.mktemp('copy') / 'gpt-2'
    made = {'models', 'checkpoint', 'samples', 'data', 'served'}

    def left_out(directory, names):
        return [name for name in names
                if (directory == ROOT and name in made) or (name.startswith('.') and name != '.gitignore')
                or name == '__pycache__']
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


@pytest.fixture(scope='module')
def ran():
    """{words of a command: its output}, so that a command in two documents runs once."""
    return {}


@pytest.mark.parametrize('block', [block for block in BLOCKS if block.language in RUN], ids=str)
def test_the_documents_do_what_they_say(block, copy, ran, monkeypatch, capfd):
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, 'path', [*sys.path])  # scripts add to it
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH'])
    printed, skipped = '', []
    for command in [block.text] if block.language == 'python' else commands_of(block.text):
        if reason := NOT_RUN.get(command) or missing(command):
            skipped.append(f'{command}: {reason}')
        elif block.language == 'python':
            printed += run_python(block, capfd)
        else:
            printed += run(command, capfd, ran)
    if skipped and not printed:
        pytest.skip('; '.join(skipped))
    if block.shown and not skipped:
        for line in without_samples(block.shown):
            assert re.search(pattern(line), printed), f'{line!r} is shown, but the output is\n{printed}'


def missing(text):
    """Why a command cannot run here, or ''."""
    return next((f'{module} is not installed' for word, module in NEEDS.items()
                 if word in text and not importlib.util.find_spec(module)), '')


def quicker(command):
    """The command with what INSTEAD has in place of its parts."""
    for old, new in INSTEAD.items():
        command = command.replace(old, new)
    return command


def run(command, capfd, ran):  # -> its output
    """Runs a command unless `ran` has its output; of `make`, the commands of its recipe, without installs."""
    command = quicker(command)
    words = shlex.split(command)
    if words[0] == 'make':
        installed = [f'--old-file={name}' for name in
                     ('install', '.venv/installed-tests', '.venv/installed-tokenizers')]
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(('MAKE', 'MFLAGS'))}
        recipe = subprocess.run([*words, '--dry-run', *installed], env=environment, capture_output=True,
                                text=True, check=True)
        return ''.join(run(line, capfd, ran) for line in commands_of(recipe.stdout))
    if tuple(words) not in ran:
        path = os.path.normpath(words[0])
        by_shell = path not in SCRIPTS or set(command) & set('|>;&$')
        ran[tuple(words)] = run_by_shell(command) if by_shell else run_script(path, words, capfd)
    return ran[tuple(words)]


def run_by_shell(command):  # -> its output
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          timeout=TIMEOUT)
    assert done.returncode == 0, f'{command}: {done.stderr}'
    return done.stdout + done.stderr


def run_script(path, words, capfd):  # -> its output
    """Runs a script of the project in this process, where TensorFlow is already imported."""
    with pytest.MonkeyPatch.context() as patch, open(os.devnull) as stdin:
        patch.setattr(sys, 'argv', words)
        patch.setattr(sys, 'stdin', stdin)
        capfd.readouterr()
        try:
            runpy.run_path(path, run_name='__main__')
            status = 0
        except SystemExit as end:
            status = end.code
    out, err = capfd.readouterr()
    assert status == 0, f'{shlex.join(words)}: {err}'
    return out + err


def run_python(block, capfd):  # -> its output
    capfd.readouterr()
    exec(compile(quicker(block.text), str(block), 'exec'), {})
    return ''.join(capfd.readouterr())


def without_samples(shown):
    """The lines that are shown, without those that a model wrote."""
    sample = False
    for line in shown.splitlines():
        header = re.fullmatch(r'=+ SAMPLE \d+ =+', line)
        sample = bool(header) or (sample and not line.startswith('='))
        if line.strip(' …') and (header or not sample):
            yield line


def pattern(line):
    """A regular expression for lines like this one: with other numbers, other space, and anything for …"""
    line = re.sub(r'(?<="text": ").*(?=", "tokens")', '…', line.strip())
    parts = re.split(r'(…|\s+|\d[\d.,]*|true|false)', line)
    kinds = {'…': '.*', ' ': r'\s+', 'true': '(true|false)', 'false': '(true|false)'}
    return ''.join(kinds.get(part) or (r'\d[\d.,]*' if part[:1].isdigit() else r'\s+' if part.isspace() else
                                       re.escape(part)) for part in parts)


# Flags, files, links

@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_stand_in_blocks_that_are_marked_and_nowhere_else(document):
    assert {block.language for block in blocks_of(document)} <= LANGUAGES
    outside = FENCED.sub('', read(document))
    assert not re.findall(r'^(?:    |\t).*', outside, re.MULTILINE), 'an indented block'
    assert '```' not in outside and '~~~' not in outside


def test_what_is_listed_as_not_run_or_replaced_is_in_a_document():
    assert set(NOT_RUN) <= set(COMMANDS)
    run = [command for command in COMMANDS if command not in NOT_RUN]
    texts = [*run, *(block.text for block in BLOCKS if block.language == 'python')]
    assert [old for old in INSTEAD if not any(old in text for text in texts)] == []
    assert [word for word in NEEDS if not any(word in text for text in texts)] == []


def known_flags():
    """All flags of the scripts."""
    flags = set()
    for name in SCRIPTS:
        (entry,) = re.findall(r'cli\.run\((\w+)\)', read(name))
        entry = runpy.run_path(os.path.join(ROOT, name))[entry]
        for function in entry.values() if isinstance(entry, dict) else [entry]:
            flags |= set(inspect.signature(function).parameters)
    return flags


def test_flags_that_are_named_exist(monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    flags, named = known_flags(), set()
    for document in DOCUMENTS:
        text = FENCED.sub(lambda block: block[2] if block[1] in RUN else '', read(document))
        named |= set(re.findall(r'(?<![\w-])--(\w[\w-]*)', text))
    assert named - flags == OTHERS_FLAGS


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links_lead_somewhere(document):
    for target in re.findall(r'\]\(([^)\s]+)\)', read(document)):
        if not target.startswith('https://'):
            path, _, anchor = target.partition('#')
            path = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
            assert os.path.exists(os.path.join(ROOT, path)), target
            assert not anchor or anchor in anchors(path), target


def anchors(document):
    """As GitHub makes them of headings."""
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)', read(document), re.MULTILINE)}


FOLDERS = ('', 'src', 'tests', 'benchmarks')  # that a document's names of files may begin in


@pytest.mark.parametrize('document', DOCUMENTS)
def test_make_targets_and_files_that_are_named_exist(document):
    targets = set(re.findall(r'^([\w-]+):', read('Makefile'), re.MULTILINE))
    for span in re.findall(r'`([^`\n]+)`', read(document)):
        first, *words = span.split() or ['']
        if first == 'make':
            assert {word for word in words if '=' not in word and word.isidentifier()} <= targets, span
        elif re.fullmatch(r'(\./)?[\w/-]+\.(py|sh)', first):
            assert any(os.path.exists(os.path.join(ROOT, folder, first)) for folder in FOLDERS), span


# The version

def test_the_changelog_begins_with_the_version():
    version = runpy.run_path(os.path.join(ROOT, 'src', 'version.py'))['VERSION']
    assert re.search(r'^## (\S+)', read('CHANGELOG.md'), re.MULTILINE)[1] == version


# The diagram of the data flow

ARROW = re.compile(r'^ +(\S+?)(?:\(\[.*?\]\))? -->(?:\|[^|]+\|)? (\S+?)(?:\(\[.*?\]\))?$')


def part_of(name):
    """The module at the top of src, or the folder, that a file belongs to."""
    return module_of(name).partition('.')[0]


def test_the_table_of_the_architecture_has_each_folder_and_module():
    (table,) = re.findall(r'^\| path in `src` .*\n((?:\|.*\n)+)', read('docs/architecture.md'), re.MULTILINE)
    named = {path.strip('/').removesuffix('.py') for path in re.findall(r'`([\w]+(?:/|\.py))`', table)}
    parts = {part_of(name) for name in NAMES if name.startswith('src/') and name not in SCRIPTS}
    assert named == parts


def test_each_arrow_of_the_diagram_is_an_import():
    (diagram,) = [block.text for block in blocks_of('docs/architecture.md') if block.language == 'mermaid']
    first, *lines = diagram.splitlines()
    assert first.startswith('flowchart')
    arrows = [ARROW.match(line) for line in lines]
    assert all(arrows), [line for line, arrow in zip(lines, arrows, strict=True) if not arrow]
    imported = {part: set() for part in map(part_of, NAMES)}
    for name in NAMES:
        imported[part_of(name)] |= {module.partition('.')[0] for module in imports(name) | FOR_EVERYBODY}
    shown = {node for arrow in arrows for node in arrow.groups()}
    files = set(re.findall(r'(\S+?)\(\[', diagram))
    assert shown - imported.keys() == files, 'a node is a part of src, or a file with its name in brackets'
    for source, target in (arrow.groups() for arrow in arrows):
        if source in imported and target in imported:
            assert source in imported[target] or target in imported[source], f'{source} --> {target}'
