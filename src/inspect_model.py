#!/usr/bin/env python3
"""Shows how a model reads text: likely and unlikely tokens, attention, what each layer adds."""
import os
import sys
from dataclasses import dataclass

from command_line import cli
from command_line.flags import CHECKPOINT, MODEL, PRECISIONS, TF32, ModelFlags, flag

from errors import require
from storage import paths


@dataclass(frozen=True)
class Flags(ModelFlags):
    """Shows how a model reads text, in an HTML file that needs no network, or in the terminal."""
    prompt: str | None = flag(None, 'the text')
    prompts_file: str | None = flag(None, 'texts: lines, or the field `prompt` of JSON lines')
    output: str = flag('inspection.html', 'a new HTML file')
    text: bool = flag(False, 'write no file, print the texts with colours')
    checkpoint: str | None = flag(None, CHECKPOINT)
    compare: str | None = flag(None, f'another model to compare with: {MODEL}; None for model_name')
    compare_checkpoint: str | None = flag(None, f'its checkpoint to compare with: {CHECKPOINT}')
    precision: str = flag('float32', f'of matrix products; {TF32}', choices=PRECISIONS)
    special_tokens: bool = flag(False, 'in texts, <|endoftext|> or another special token is one id')

    def __post_init__(self):
        super().__post_init__()
        require((self.prompt is None) != (self.prompts_file is None), 'give --prompt or --prompts_file')
        require(self.prompt != '', '--prompt is empty; give a text')
        if not self.text:
            self.check_output()

    def check_output(self):  # -> path
        path = paths.expand(self.output)
        require(not os.path.lexists(path), f'--output {self.output} exists; name another, or remove it')
        require(os.path.basename(path) and os.path.isdir(os.path.dirname(path) or '.'),
                f'--output {self.output!r} must name a file in a folder that exists')
        return path


@cli.takes(Flags)
def inspect_model(flags):
    with cli.load_tensorflow():
        from generation.samples import read_prompts
        from inspection import page, terminal
        from inspection.inspector import Inspector
    numbered = [(1, flags.prompt)] if flags.prompts_file is None else read_prompts(flags.prompts_file)
    wanted = [(flags.model_name, flags.checkpoint)]
    if flags.compare or flags.compare_checkpoint:
        wanted.append((flags.compare or flags.model_name, flags.compare_checkpoint))
    models = []
    for name, checkpoint in wanted:
        inspector = Inspector(flags.find_model(name), flags.models_dir, checkpoint, precision=flags.precision)
        models.append((f'{name}, {os.path.basename(inspector.prefix)}', inspector))
    enc, n_ctx = inspector.enc, min(inspector.hparams.n_ctx for _, inspector in models)
    require(all(inspector.enc.fingerprint == enc.fingerprint for _, inspector in models),
            f'{flags.compare} has another vocabulary than {flags.model_name}, so its tokens are others')
    texts, notes = [], []
    for line, prompt in numbered:
        tokens = enc.encode(prompt, flags.special_tokens)
        texts.append(tokens[:n_ctx])
        if len(tokens) > n_ctx:
            notes.append(f'Text {line}: the first {n_ctx} of its {len(tokens)} tokens are shown.')
            print(notes[-1], file=sys.stderr)
    if flags.text:
        for tokens in texts:
            terminal.print_text(models, tokens)
        return
    html = page.make_page(models, texts, notes)
    with paths.output(flags.check_output()) as file:  # it may have been made meanwhile
        file.write(html)
    print(f'Made {flags.output}')


if __name__ == '__main__':
    cli.run(inspect_model)
