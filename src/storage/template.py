"""Rows → documents: a text, or prompts and answers with a template's words around them (docs/answers.md)."""
import os
import re

from errors import InputError, require
from storage import paths
from storage.text_files import check_surrogates

DEFAULT = '{prompt}{completion}'
MESSAGES = 'a list of {"role": …, "content": …}: maybe the system\'s, then user\'s and assistant\'s in turn'


class Prompt(str):
    """Text that is not learned, before an answer."""


class Template:
    """What stands before a prompt, between it and the answer, and after that. Raises InputError without the
    places of both."""

    def __init__(self, text=DEFAULT, place=''):
        check_surrogates(text, f'{place}a template: ')
        parts = re.split(r'(\{prompt\}|\{completion\})', text)
        require(parts[1::2] == ['{prompt}', '{completion}'], f'{place}a template must have {{prompt}} and, '
                f'after it, {{completion}}, once, not {text[:200]!r}')
        self.before, self.between, self.after = parts[::2]

    def prompt(self, text):  # -> str
        return Prompt(self.before + text + self.between)

    def ends(self, enc):  # -> texts that may follow an answer
        end = '' if enc.eot is None else enc.decode([enc.eot])
        following = self.after and self.after + self.before  # the next question, in a conversation
        return [*filter(None, dict.fromkeys([following, self.after + end, end]))]

    def texts(self, row, place, field):
        """Of a row: [text], or [Prompt, answer, Prompt, answer, …]. Raises InputError without these."""
        kinds = (field,), ('prompt', 'completion'), ('messages',)
        present = [names for names in kinds if row.keys() >= {*names}]
        require(present, f'{place} has no "{field}", no "prompt" and "completion", and no "messages", but '
                f'{", ".join(map(repr, row))[:200]}; give --text_field')
        names = next((names for names in present if any(map(row.get, names))), present[0])  # not empty
        if names == kinds[0]:
            return [text_of(row, field, place)]
        if names == kinds[1]:
            pairs = [[text_of(row, name, place) for name in names]]
        else:
            pairs = exchanges(row['messages'], place)
            require(len(pairs) == 1 or self.after, f'{place} has several answers, and --template no text '
                    "after {completion}, where one ends, as in $'Q: {prompt}\\nA: {completion}\\n'")
        return [text for prompt, answer in pairs for text in (self.prompt(prompt), answer + self.after)]


def text_of(values, name, place):  # str; raises InputError
    text = values[name]
    require(isinstance(text, str), f'{place}: "{name}" is {text!r:.40}, not a text; mend it')
    check_surrogates(text, f'{place}: "{name}": ')
    return text


def exchanges(messages, place):  # -> [[prompt, answer], …]
    try:
        roles = [message['role'] for message in messages]
        contents = [text_of(message, 'content', place) for message in messages]
    except (TypeError, KeyError):
        raise InputError(f'{place}: "messages" must be {MESSAGES}') from None
    if roles[:1] == ['system']:
        del roles[0]
        contents[:2] = ['\n\n'.join(contents[:2])]
    require(roles and roles == ['user', 'assistant'] * (len(roles) // 2),
            f'{place}: the roles in "messages" are {roles!r:.80}, not those of {MESSAGES}')
    return [contents[i:i + 2] for i in range(0, len(contents), 2)]


def find(*folders):  # of runs or models -> the text of the first template, or None
    path = next((path for folder in folders if os.path.lexists(path := f'{folder}/{paths.TEMPLATE}')), None)
    if path is None:
        return None
    text = paths.read_json(path, 'remove it').get('template')
    require(isinstance(text, str), f'{path} must hold a "template", a text; remove it')
    Template(text, f'{path}: ')
    return text
