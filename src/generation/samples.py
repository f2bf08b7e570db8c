"""Samples of a model, printed as the original prints them, and files of prompts."""
import contextlib
import json
import os
import sys
import typing
from collections.abc import Iterator

from tqdm import tqdm

import encoder
from errors import InputError, require
from fast.session import device
from generation import generator
from generation.checks import check_controls
from storage import paths


class SampleWriter:
    """Writes the samples that SamplingFlags ask for.

    special_tokens: whether special tokens in prompts are themselves, or the characters they are written in.
    """

    def __init__(self, flags, unconditional: bool, special_tokens: bool = False):
        controls = {'temperature': flags.temperature, 'top_k': flags.top_k, 'top_p': flags.top_p,
                    'repetition_penalty': flags.repetition_penalty}
        check_controls(length=1 if flags.length is None else flags.length, **controls)
        directory = paths.find_model(flags.model_name, flags.models_dir, flags.checkpoint_dir)
        self.model = generator.load(directory, flags.models_dir, flags.checkpoint, flags.precision)
        self.enc, n_ctx = self.model.enc, self.model.hparams.n_ctx
        require(self.enc.eot is not None or not unconditional,
                f'{directory}/encoder.json lacks {encoder.EOT}, or '
                'another token that ends a text, with which unconditional samples begin')
        self.special_tokens = special_tokens
        self.seed, self.nsamples, self.batch_size = flags.seed, flags.nsamples, flags.batch_size
        length = n_ctx if unconditional else max(1, n_ctx // 2)
        self.options: dict = {'length': flags.length or length, **controls, 'stop': flags.ends}
        self.device = device()

    def name_device(self):
        """Prints the device on stderr; once, when nothing can be refused any more."""
        if self.device:
            tqdm.write(f'Device: {self.device}', file=sys.stderr)
            self.device = ''

    def context(self, prompt: str, name: str = 'the prompt') -> list[int]:
        """A prompt's tokens; of more than n_ctx the last, which is told on stderr."""
        tokens, n_ctx = self.enc.encode(prompt, self.special_tokens), self.model.hparams.n_ctx
        if len(tokens) > n_ctx:
            tqdm.write(f'{name} has {len(tokens)} tokens; its last {n_ctx} are used, which is what the model '
                       'sees', file=sys.stderr)
        return tokens[-n_ctx:]

    def write(self, file: typing.IO[str], prompt: str | None = None, prefix: str = '', stream: bool = False):
        """Writes nsamples samples (0: without end) of a prompt, each after a line of its number and the
        prefix; with stream, a sample that is drawn alone while it comes."""
        context = [self.enc.eot] if prompt is None else self.context(prompt)
        self.name_device()
        seed = generator.new_seed() if self.seed is None else self.seed
        first = 0
        while first < self.nsamples or not self.nsamples:
            last = first + self.batch_size
            numbers = range(first, min(last, self.nsamples) if self.nsamples else last)
            arguments = [context] * len(numbers), [[seed, number] for number in numbers]
            if stream and len(numbers) == 1:
                self.write_while_drawn(file, heading(first) + prefix, *arguments)
            else:
                for number, row in zip(numbers, self.model.complete(*arguments, **self.options), strict=True):
                    print(heading(number) + prefix + row.text, file=file, flush=True)
            first = last

    def write_while_drawn(self, file, beginning, contexts, seeds):
        print(beginning, end='', file=file, flush=True)
        try:
            for (row,) in self.model.continuations(contexts, seeds, **self.options):
                print(row.read_new(), end='', file=file, flush=True)
            print(row.read_new(whole=True), end='', file=file)
        finally:  # on Ctrl-C too
            print(file=file, flush=True)

    def complete(self, prompts_file: str, output: str | None, logprobs: bool):
        """Writes nsamples JSON lines for each prompt of a file; if `output` has some of them already, the
        others.

        In float32, the n-th sample of a prompt is the n-th that it has alone with this seed. A prompt that
        the file repeats goes on with further samples.
        """
        if output and os.path.exists(output_path(output)):
            require(not os.path.samefile(output_path(output), paths.expand(prompts_file)),
                    f'--output {output} is the file of the prompts; name another')
        seed = generator.new_seed() if self.seed is None else self.seed
        n_seen, tasks = {}, []
        for line, prompt in read_prompts(prompts_file):
            first = n_seen.get(prompt, 0)
            n_seen[prompt] = first + self.nsamples
            tasks += [(line, prompt, number) for number in range(first, first + self.nsamples)]
        with resumed_output(output, [prompt for _, prompt, _ in tasks]) as (file, n_done), tqdm(
                total=len(tasks), initial=n_done, unit='sample', dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10) as bar:
            self.name_device()
            # Batches are those of an undisturbed run: in bfloat16 and int8 the samples depend on them.
            for first in range(n_done - n_done % self.batch_size, len(tasks), self.batch_size):
                batch = tasks[first:first + self.batch_size]
                contexts = [self.context(prompt, f'{prompts_file}, line {line}: the prompt')
                            for line, prompt, _ in batch]
                seeds = [[seed, number] for _, _, number in batch]
                rows = self.model.complete(contexts, seeds, logprobs=logprobs, **self.options)
                n_old = max(0, n_done - first)
                for (_, prompt, _), row in zip(batch[n_old:], rows[n_old:], strict=True):
                    file.write(as_json(prompt, row, logprobs))
                file.flush()
                bar.update(len(batch) - n_old)


def heading(number):
    return f'{"=" * 40} SAMPLE {number + 1} {"=" * 40}\n'


def as_json(prompt, row, logprobs):
    values = {'prompt': prompt, 'text': row.text, 'tokens': row.tokens, 'finished': row.finished}
    if logprobs:
        values['logprobs'] = row.logprobs
    return json.dumps(values, ensure_ascii=False) + '\n'


def read_prompts(path):
    """[(number of the line, prompt)]: a prompt a line; or JSON lines with a field `prompt`, if the file's
    name ends in .jsonl or its first line is such an object. Raises InputError, naming the line, for anything
    else."""
    data = paths.read_small(paths.expand(path), paths.TEXT_FILE, or_pipe=True)
    paths.check_text(data, f'{path}: ')
    try:
        lines = data.decode('utf-8').removeprefix(paths.BYTE_ORDER_MARK).removesuffix('\n').split('\n')
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b'\n') + 1
        raise InputError(f'{path}, line {line}: not UTF-8; convert the file, as with iconv -t UTF-8'
                         ) from None
    require(lines != [''], f'{path} holds no prompt; write one a line')
    as_objects = path.endswith('.jsonl') or prompt_of(lines[0]) is not None
    prompts = []
    for number, line in enumerate(lines, 1):
        prompt = prompt_of(line) if as_objects else line.rstrip('\r')
        try:
            require(prompt is not None, f'expected a JSON object with a text as "prompt", not {line[:60]!r}')
            require(prompt, 'the prompt is empty; remove the line or give it text')
            encoder.check_surrogates(prompt)
        except InputError as error:
            raise InputError(f'{path}, line {number}: {error}') from None
        prompts.append((number, prompt))
    return prompts


def prompt_of(line):
    """The prompt of a JSON line, or None if it has none."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict) and isinstance(value.get('prompt'), str):
            return value['prompt']
    return None


@contextlib.contextmanager
def resumed_output(output, prompts):
    """A file for JSON lines, or stdout for None, and how many it has (a pipe or a device: none). A last line
    that was cut off is removed. prompts: of all lines that there will be; raises InputError if the file has
    others."""
    if output is None:
        yield sys.stdout, 0
        return
    path = output_path(output)
    if paths.stream(path) is not None:
        with paths.output(path) as file:
            yield file, 0
        return
    # A line may be cut within a character: surrogateescape.
    with open(path, 'a+', encoding='utf-8', errors='surrogateescape', newline='\n') as file:
        file.seek(0)
        n_done = end = 0
        for line in iter(file.readline, ''):
            if not line.endswith('\n'):
                break
            number = n_done + 1
            if prompts[n_done:number] != [prompt_of(line)]:
                raise InputError(f'--output {output}, line {number} is not the answer to prompt {number} of '
                                 'the file; name another output, or move this one away')
            n_done, end = number, file.tell()
        file.truncate(end)
        yield file, n_done


def output_path(output):
    path = paths.expand(output)
    require(os.path.basename(path) and not os.path.isdir(path), f'--output {output!r} does not name a file')
    return path


@contextlib.contextmanager
def opened(output: str | None) -> Iterator[typing.IO[str]]:
    """A text file, or stdout for None. The file appears at the end; on Ctrl-C with the samples so far."""
    if output is None:
        yield sys.stdout
        return
    with paths.output(output_path(output)) as file, contextlib.suppress(KeyboardInterrupt):
        yield file
