"""Samples, printed as the original prints them, and files of prompts."""
import collections
import contextlib
import itertools
import json
import os
import sys

from tqdm import tqdm

import encoder
import sample
from errors import InputError, require
from fast.session import device
from generation import beam_search, generator
from storage import paths, template, text_files


class SampleWriter:
    """Writes the samples that SamplingFlags ask for."""

    def __init__(self, flags, unconditional, special_tokens=False, template_text=None):
        used = beam_search.CONTROLS if flags.beams else generator.CONTROLS
        controls = {name: getattr(flags, name) for name in used} | {'logit_bias': flags.biases}
        sample.check_controls(length=1, **controls)
        folder = flags.find_model(flags.model_name)
        self.model = generator.load(folder, flags.models_dir, flags.checkpoint, flags.precision)
        self.enc, self.n_ctx = self.model.enc, self.model.hparams.n_ctx
        sample.check_controls(length=1, n_vocab=self.model.hparams.n_vocab, **controls)  # the ids
        require(self.enc.eot is not None or not unconditional,
                f'{folder}/encoder.json lacks {encoder.EOT}, with which samples begin; give a prompt')
        self.seed, self.beams, self.nsamples = flags.seed, flags.beams, flags.nsamples or flags.beams
        self.batch_size = self.nsamples if self.beams else flags.batch_size
        text = (template.find(folder) if template_text is None else template_text) or ''
        self.template, self.device = template.Template(text or template.DEFAULT), device()
        ends = self.template.ends(self.enc) if text and not unconditional else []
        self.special_tokens = special_tokens or any(token in text for token in self.enc.special)
        length = flags.length or (self.n_ctx if unconditional else max(1, self.n_ctx // 2))
        self.options = {'length': length, 'stop': (*flags.ends, *ends), **controls}
        self.options |= {'beams': flags.beams} if flags.beams else {'prompt_lookup': flags.prompt_lookup}

    def context(self, prompt, place=''):  # -> tokens
        tokens = self.enc.encode(self.template.prompt(prompt), self.special_tokens)
        if self.beams:
            beam_search.check_length(len(tokens), self.options['length'], self.n_ctx, place)
        if len(tokens) > self.n_ctx:
            tqdm.write(f'{place}the prompt has {len(tokens)} tokens; its last {self.n_ctx} are used',
                       file=sys.stderr)
        return tokens

    def draw(self, contexts, numbers):  # -> as Generator.continuations
        if self.beams:  # a batch is of one prompt
            states = [beam_search.search(self.model, contexts[0], **self.options)[:len(contexts)]]
        else:
            seed = generator.new_seed() if self.seed is None else self.seed
            seeds = [[seed, number] for number in numbers]
            states = self.model.continuations(contexts, seeds, **self.options)
        if self.device:  # told once, when the prompts are known to be right
            tqdm.write(f'Device: {self.device}', file=sys.stderr)
            self.device = ''
        return states

    def write(self, file, prompt=None, prefix=''):
        """Writes nsamples samples (0: no end, or all beams); one alone, to stdout, while it is drawn."""
        context = [self.enc.eot] if prompt is None else self.context(prompt)
        numbers = range(self.nsamples or sys.maxsize)
        for first in numbers[::self.batch_size]:
            batch = numbers[first:first + self.batch_size]
            headings = [f'{"=" * 40} SAMPLE {number + 1} {"=" * 40}\n{prefix}' for number in batch]
            states = self.draw([context] * len(batch), batch)
            if len(batch) == 1 and file is sys.stdout:
                write_while_drawn(headings[0], states)
                continue
            *_, rows = states
            for heading, row in zip(headings, rows, strict=False):  # beams may find fewer
                print(heading + row.text, file=file, flush=True)

    def complete(self, prompts_file, output, logprobs):
        """Writes nsamples JSON lines for each prompt of a file, but those that `output` has."""
        path = output and paths.expand(output)
        if path and os.path.exists(path) and os.path.samefile(path, paths.expand(prompts_file)):
            raise InputError(f'--output {output} is the file of the prompts; name another')
        tasks, numbers = [], collections.defaultdict(itertools.count)
        for line, prompt in read_prompts(prompts_file):
            tasks += [(line, prompt, next(numbers[prompt])) for _ in range(self.nsamples)]
        with resumed_output(path, [prompt for _, prompt, _ in tasks]) as (file, n_done), tqdm(
                total=len(tasks), initial=n_done, unit='sample', dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10) as bar:
            # In the batches of an undisturbed run: in bfloat16 and int8 samples depend on them.
            for first in range(n_done - n_done % self.batch_size, len(tasks), self.batch_size):
                batch, n_old = tasks[first:first + self.batch_size], max(0, n_done - first)
                contexts = [self.context(prompt, f'{prompts_file}, line {line}: ')
                            for line, prompt, _ in batch]
                *_, rows = self.draw(contexts, [number for _, _, number in batch])
                require(len(rows) == len(batch), f'{prompts_file}, line {batch[0][0]}: beam search finds '
                        f'{len(rows)} texts; give a smaller --nsamples')
                for (_, prompt, _), row in zip(batch[n_old:], rows[n_old:], strict=True):
                    file.write(as_json(prompt, row, logprobs))
                file.flush()
                bar.update(len(batch) - n_old)


def write_while_drawn(heading, states):
    print(heading, end='', flush=True)
    try:
        for (row,) in states:
            print(row.read_new(), end='', flush=True)
    finally:  # on Ctrl-C too
        print(flush=True)


def as_json(prompt, row, logprobs):
    values = {'text': row.text, 'tokens': row.tokens, 'finished': row.finished}
    if logprobs:
        values['logprobs'] = row.logprobs
    return f'{line_start(prompt)}, {json.dumps(values, ensure_ascii=False)[1:]}\n'


def line_start(prompt):
    return json.dumps({'prompt': prompt}, ensure_ascii=False)[:-1]


def read_prompts(path):  # -> [(number of the line, prompt)]
    """Of text lines; of JSON lines, if the name ends in .jsonl or the first line has a `prompt`."""
    lines = ''.join(text_files.read_text(paths.expand(path))).removesuffix('\n').split('\n')
    require(lines != [''], f'{path} holds no prompt; write one a line')
    is_json = path.endswith('.jsonl') or prompt_of(lines[0]) is not None
    expected, prompts = 'a JSON object with a text as "prompt"' if is_json else 'a prompt', []
    for number, line in enumerate(lines, 1):
        prompt, place = prompt_of(line) if is_json else line.rstrip('\r'), f'{path}, line {number}: '
        require(prompt, f'{place}expected {expected}, not {line[:60]!r}')
        text_files.check_surrogates(prompt, place)
        prompts.append((number, prompt))
    return prompts


def prompt_of(line):  # -> str; None if no JSON object has one
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict) and isinstance(value.get('prompt'), str):
            return value['prompt']
    return None


@contextlib.contextmanager
def resumed_output(path, prompts):
    """A file for JSON lines, and how many answers to these prompts it has. A cut-off last line goes."""
    if path is None or paths.stream(path) is not None:
        with contextlib.nullcontext(sys.stdout) if path is None else paths.output(path) as file:
            yield file, 0
        return
    with open(path, 'ab+') as file:
        file.seek(0)
        *lines, cut_off = file.read().split(b'\n')
        due = ''.join(line_start(prompt) for prompt in prompts[len(lines):][:1]).encode()
        answers = [*map(prompt_of, lines)] == prompts[:len(lines)] and (due or not cut_off)
        require(answers and cut_off[:len(due)] == due[:len(cut_off)],
                f'--output {path} does not answer these prompts; name another')
        file.truncate(file.tell() - len(cut_off))
    with open(path, 'a', encoding='utf-8', newline='\n') as file:
        yield file, len(lines)


@contextlib.contextmanager
def opened(output):
    """A text file, which appears at the end, also on Ctrl-C or a wrong prompt; stdout for None."""
    if output is None:
        yield sys.stdout
        return
    with paths.output(paths.expand(output)) as file:
        try:
            yield file
            return
        except (KeyboardInterrupt, InputError) as error:
            if file.seekable() and not file.tell():  # no sample to keep
                raise
            end = error
    raise end
