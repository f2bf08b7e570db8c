"""Text that is on every machine that has Python."""
import ast
import glob
import itertools
import os
import pydoc_data.topics
import site
import sysconfig

DOCUMENT = 1 << 20  # characters of one file of a large corpus


def read(path):
    with open(path, encoding='utf-8', errors='replace', newline='') as file:
        return file.read()


def modules():
    """The standard library's modules, without its packages."""
    return sorted(glob.glob(os.path.join(glob.escape(sysconfig.get_path('stdlib')), '*.py')))


def write_help(path):
    """Prose: the texts of Python's help() and the docstrings of the standard library's modules."""
    nodes = (node for name in modules() for node in ast.walk(ast.parse(read(name))))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
    with open(path, 'w', encoding='utf-8') as file:
        file.write('\n\n'.join([*pydoc_data.topics.topics.values(), *filter(None, docstrings)]))
    return path


def write_large(directory, size):
    """Writes files of about DOCUMENT characters each; returns their bytes, which are `size` or little more.

    Their text is that of the code and prose in the library directories of this Python, over again if need be.
    """
    os.mkdir(directory)
    texts, written = map(read, itertools.cycle(library_files())), 0
    while written < size:
        document = ''
        while len(document) < DOCUMENT:
            document += next(texts)
        with open(os.path.join(directory, f'{written:012}.txt'), 'wb') as file:
            written += file.write(document.encode())
    return written


def library_files():
    files = set()
    for root in (sysconfig.get_path('stdlib'), *site.getsitepackages()):
        for folder, _, names in os.walk(root):
            files |= {os.path.join(folder, name) for name in names if name.endswith(('.py', '.txt', '.rst'))}
    return sorted(files)
