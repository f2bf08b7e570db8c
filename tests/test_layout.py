"""Who may import what (DEVELOPERS.md, Layout), and what no file of the project does."""
import ast
import glob
import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = sorted([*glob.glob(f'{ROOT}/*.py'), *glob.glob(f'{ROOT}/src/**/*.py', recursive=True)])
NAMES = [os.path.relpath(path, ROOT).replace(os.sep, '/') for path in FILES]

FOR_EVERYBODY = {'errors', 'storage.paths', 'version'}
MODEL = {'hparams', 'model', 'encoder', 'storage', 'tensorflow', 'numpy'}
MAY_IMPORT = {  # a file, or all of a folder: besides the standard library and FOR_EVERYBODY
    'download_model.py': {'command_line', 'requests', 'tqdm', 'urllib3'},
    'encode.py': {'command_line', 'encoder', 'load_dataset', 'storage'},
    'train.py': {'command_line', 'training.trainer'},
    'train-horovod.py': {'command_line', 'training.trainer', 'training.horovod_worker'},
    'src/errors.py': set(),
    'src/hparams.py': set(),
    'src/version.py': set(),
    'src/encoder.py': {'regex', 'storage.text_files', 'storage.vocabulary_files'},
    'src/load_dataset.py': {
        'encoder',
        'fast.bulk_encoding',
        'storage',
        'numpy',
        'regex',
        'tqdm',
        'training.windows',
    },
    'src/fast/bulk_encoding.py': {'awkward', 'gigatoken', 'numpy'},
    'src/model.py': {'fast', 'hparams', 'numpy', 'tensorflow'},
    'src/sample.py': {'fast', 'model', 'numpy', 'tensorflow'},
    'src/memory_saving_gradients.py': {'tensorflow'},
    'src/accumulate.py': {'tensorflow'},
    'src/command_line/': {'command_line', 'fire', 'storage.run_state', 'storage.checkpoint',
                          'storage.template', 'tensorflow', 'version'},
    'src/storage/': MODEL | {'pyarrow', 'zstandard'},
    'src/fast/': {'fast', 'tensorflow'},
    'src/generation/': MODEL | {'generation', 'sample', 'fast', 'tqdm'},
    'src/evaluation/': MODEL | {'evaluation', 'fast', 'load_dataset', 'regex', 'tqdm'},
    'src/formats/': MODEL | {'formats', 'fast', 'sample', 'safetensors'},
    'src/inspection/': MODEL | {'inspection', 'fast', 'tqdm'},
    'src/training/': MODEL
    | {
        'training',
        'accumulate',
        'command_line',
        'fast',
        'generation',
        'horovod',
        'load_dataset',
        'memory_saving_gradients',
        'tqdm',
    },
    'src/convert.py': {'command_line', 'formats.hugging_face', 'formats.peft', 'model'},
    'src/create_model.py': MODEL | {'command_line', 'load_dataset', 'tokenizers'},
    'src/evaluate.py': {'command_line', 'evaluation', 'load_dataset'},
    'src/export.py': {'command_line', 'formats.saved_model'},
    'src/generate_unconditional_samples.py': {'command_line', 'generation.samples'},
    'src/plot_runs.py': {'command_line', 'matplotlib', 'storage.metrics_file'},
    'src/inspect_model.py': {'command_line', 'generation.samples', 'inspection'},
    'src/interactive_conditional_samples.py': {'command_line', 'generation.samples', 'storage.text_files'},
}
TENSORFLOW_FREE = [
    'generation.continuation',
    'encoder',
    'hparams',
    'storage.metrics_file',
    'storage.npz',
    'storage.paths',
    'storage.run_lock',
    'storage.run_state',
    'storage.rows',
    'storage.template',
    'storage.text_files',
    'storage.vocabulary_files',
    'fast.bulk_encoding',
    'training.data',
    'training.windows',
    'training.worker',
    'load_dataset',
    'errors',
    'command_line.interrupts',
    'command_line.startup',
    'command_line.cli',
    'command_line.flags',
    'encode',
    'download_model',
    'train',
    'convert',
    'create_model',
    'generate_unconditional_samples',
    'interactive_conditional_samples',
    'evaluation.test_sets',
    'evaluation.metrics',
    'evaluate',
    'export',
    'inspect_model',
    'plot_runs',
]
CONSTANT_MAKERS = {'kernel', 'traced', 're.compile', 'regex.compile', 'struct.Struct', 'frozenset',
                   'functools.partial', 'spacing', 'swap', 'perplexity_of', 'typing.TypeVar', 'pathlib.Path',
                   'pathlib.Path(__file__).resolve', 'pathlib.Path(__file__).with_name', 'cli.writer',
                   'tf.ConfigProto'}


def tree(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return ast.parse(file.read(), name)


PARSED = {name: tree(name) for name in NAMES}
SCRIPTS = [name for name in NAMES if "__name__ == '__main__'" in ast.unparse(PARSED[name].body[-1])]


def imported(name):
    """All modules that a file imports, in functions too: the project's by their full names, others' top
    level."""
    modules = set()
    for node in ast.walk(PARSED[name]):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name} imports relatively'
            below = {f'{node.module}.{alias.name}' for alias in node.names} & OURS.keys()
            modules |= below or {node.module if node.module in OURS else node.module.partition('.')[0]}
    return modules


def imports(name):
    """The same without the standard library's."""
    return imported(name) - sys.stdlib_module_names


def module_of(name):
    return name.removeprefix('src/').removesuffix('.py').removesuffix('/__init__').replace('/', '.')


OURS = {module_of(name): name for name in NAMES}


def may_import(name):
    """What the table says of a file, or of the folder it is in."""
    allowed = MAY_IMPORT.get(name) or MAY_IMPORT.get(os.path.dirname(name) + '/')
    assert name in MAY_IMPORT or allowed, f'{name} is new: say in MAY_IMPORT what it may import'
    return (allowed or set()) | FOR_EVERYBODY


def calls(node):
    return [ast.unparse(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)]


# Imports

@pytest.mark.parametrize('name', NAMES)
def test_a_file_imports_only_what_the_design_lets_it(name):
    allowed = may_import(name)
    assert not {module for module in imports(name) if not {module, module.partition('.')[0]} & allowed}


def test_no_file_is_missing():
    assert {name for name in MAY_IMPORT if name.endswith('.py')} <= set(NAMES)
    assert {os.path.dirname(name) + '/' for name in NAMES if name.count('/') > 1} <= MAY_IMPORT.keys()


def test_errors_imports_nothing_and_paths_only_errors():
    assert imports('src/errors.py') == set()
    assert imports('src/storage/paths.py') == {'errors'}


def cycle(
    needed_by,
):  # {name: set of names} -> what is left when all that needs nothing of it has been taken away
    waiting = {name: needed & needed_by.keys() - {name} for name, needed in needed_by.items()}
    while free := {name for name, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    return waiting


def test_imports_have_no_cycle():
    assert cycle({module: imports(name) for module, name in OURS.items()}) == {}


def test_folders_have_no_cycle():
    folders = {}
    for module, name in OURS.items():
        if '.' in module:
            folders.setdefault(module.partition('.')[0], set()).update(
                other.partition('.')[0] for other in imports(name) if '.' in other)
    assert cycle(folders) == {}


def test_module_names_hide_no_installed_module():
    assert not {module.partition('.')[0] for module in OURS} & sys.stdlib_module_names
    assert len(OURS) == len(NAMES)


def test_only_cli_knows_fire_and_only_the_worker_horovod():
    assert [name for name in NAMES if 'fire' in imports(name)] == ['src/command_line/cli.py']
    assert [name for name in NAMES if 'horovod' in imports(name)] == ['src/training/horovod_worker.py']


def test_what_needs_no_tensorflow_imports_without_it():
    code = 'import sys\nsys.modules["tensorflow"] = None\n' + ''.join(
        f'import {name}\n' for name in TENSORFLOW_FREE
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([os.path.join(ROOT, 'src'), ROOT])}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


# Side effects at import

def is_docstring(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_constant(node):
    later = {name for part in ast.walk(node) if isinstance(part, ast.Lambda) for name in calls(part)}
    return isinstance(node, (ast.Assign, ast.AnnAssign)) and set(calls(node)) - later <= CONSTANT_MAKERS


def is_path_line(node, name):
    return (
        '/' not in name and isinstance(node, ast.Expr) and ast.unparse(node).startswith('sys.path.insert(0, ')
    )


def is_for_scripts(node, name):
    """In the process of a script, startup has Ctrl-C end it until `run`, and a missing package told."""
    return (name == 'src/command_line/startup.py' and isinstance(node, ast.If)
            and ast.unparse(node.test).startswith('is_script()'))


def is_guard(node, name):
    """`if __name__ == '__main__': cli.run(…)`, at the end of a script."""
    return (node is PARSED[name].body[-1] and isinstance(node, ast.If) and not node.orelse
            and re.fullmatch(r"if __name__ == '__main__':\n    cli\.run\(\w+\)", ast.unparse(node)))


@pytest.mark.parametrize('name', NAMES)
def test_importing_does_nothing_but_define(name):
    for i, node in enumerate(PARSED[name].body):
        defines = isinstance(
            node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        ) or is_constant(node)
        assert (defines or (i == 0 and is_docstring(node)) or is_path_line(node, name) or is_guard(node, name)
                or is_for_scripts(node, name)), (
            f'{name}:{node.lineno} does something at import: {ast.unparse(node)[:80]}')


@pytest.mark.parametrize('name', NAMES)
def test_a_file_says_first_what_it_is_for(name):
    assert is_docstring(PARSED[name].body[0])


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_is_executable_and_ends_in_cli_run(name):
    path = os.path.join(ROOT, name)
    with open(path, encoding='utf-8') as file:
        assert file.readline() == '#!/usr/bin/env python3\n'
    assert os.access(path, os.X_OK)
    assert is_guard(PARSED[name].body[-1], name)


def test_all_root_files_and_eight_of_src_are_scripts():
    assert {name for name in NAMES if '/' not in name} <= set(SCRIPTS)
    assert {'src/convert.py', 'src/create_model.py', 'src/evaluate.py', 'src/export.py',
            'src/generate_unconditional_samples.py', 'src/inspect_model.py',
            'src/interactive_conditional_samples.py', 'src/plot_runs.py'} <= set(SCRIPTS)


@pytest.mark.parametrize('name', [name for name in SCRIPTS if '/' not in name])
def test_a_root_script_finds_src_through_a_symbolic_link(name):
    (line,) = [ast.unparse(node) for node in PARSED[name].body if is_path_line(node, name)]
    assert line == "sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))"


# What is said of a function

def used_of(module):
    """The names of a module's that other files use."""
    found = set()
    for tree in (PARSED[name] for name in NAMES if module_of(name) != module):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module.rpartition('.')[2]:
                found.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module == module:
                found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize('name', [name for name in NAMES if '/' in name])
def test_what_other_files_call_has_a_docstring_or_shapes_on_its_first_line(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        lines = file.read().split('\n')
    used = used_of(module_of(name))
    for node in PARSED[name].body:
        if isinstance(node, ast.FunctionDef) and node.name in used:
            signature = lines[node.lineno - 1:max(node.lineno, node.body[0].lineno - 1)]
            assert ast.get_docstring(node) or any('  # ' in line for line in signature), (
                f'{name}: {node.name}'
            )


TESTED_ELSEWHERE = {  # where a file of its own would repeat what these files test
    'errors': 'cli', 'version': 'cli', 'train': 'trainer',
    'worker': 'train_horovod', 'horovod_worker': 'train_horovod',
    'generate_unconditional_samples': 'samples', 'interactive_conditional_samples': 'samples'}


def test_every_module_has_a_test_file_of_its_name():
    for name in NAMES:
        module = os.path.basename(name).removesuffix('.py').replace('-', '_')
        if module != '__init__':
            file = f'{ROOT}/tests/test_{TESTED_ELSEWHERE.get(module, module)}.py'
            assert os.path.exists(file), f'{name} has no {file}'


# What is nowhere

@pytest.mark.parametrize('name', NAMES)
def test_nothing_that_runs_what_it_reads(name):
    assert not imported(name) & {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib'}
    called = set(calls(PARSED[name]))
    assert not called & {'eval', 'exec', 'os.system', 'os.popen', '__import__'}
    assert not {call.rpartition('.')[2] for call in called} & {'extractall', 'unpack_archive'}


@pytest.mark.parametrize('name', NAMES)
def test_numpy_is_never_allowed_to_unpickle(name):
    keywords = [node for node in ast.walk(PARSED[name]) if isinstance(node, ast.keyword)]
    for keyword in keywords:
        assert keyword.arg != 'allow_pickle' or ast.unparse(keyword.value) == 'False'
        assert keyword.arg != 'shell' or ast.unparse(keyword.value) == 'False'


def text_opens(name):
    """(line, modes, names of the keywords) of each call that opens a file, unless the modes named are
    binary."""
    for node in ast.walk(PARSED[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ('open', 'os.fdopen'):
            modes = re.findall(r"'(\w+[+]?)'", ast.unparse(node.args[1])) if len(node.args) > 1 else ['r']
            if not (modes and all('b' in mode for mode in modes)):
                yield node.lineno, modes, {each.arg for each in node.keywords}


@pytest.mark.parametrize('name', NAMES)
def test_text_files_have_the_same_bytes_on_every_system(name):
    for line, modes, given in text_opens(name):
        assert {'encoding'} | ({'newline'} if modes != ['r'] else set()) <= given, f'{name}:{line}'


@pytest.mark.parametrize('name', NAMES)
def test_no_bare_except(name):
    assert [node.lineno for node in ast.walk(PARSED[name])
            if isinstance(node, ast.ExceptHandler) and node.type is None] == []


@pytest.mark.parametrize('name', NAMES)
def test_only_cli_trainer_and_the_worker_end_the_process(name):
    called = set(calls(PARSED[name]))
    assert not called & {'exit', 'quit'}
    # At the second Ctrl-C, and where calls of Horovod do not come back.
    assert 'os._exit' not in called or name in ('src/command_line/interrupts.py',
                                                'src/training/horovod_worker.py')
    assert 'sys.exit' not in called or name in ('src/command_line/startup.py', 'src/command_line/cli.py',
                                                'src/training/trainer.py', 'src/training/worker.py',
                                                'src/training/horovod_worker.py')
