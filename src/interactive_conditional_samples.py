#!/usr/bin/env python3
"""Continues prompts, asked for one after another, by --prompt, or of a file by --prompts_file."""
import contextlib
import dataclasses
import sys

from command_line import cli
from command_line.flags import SamplingFlags
from errors import InputError, require
from storage import paths

ASK = 'Model prompt >>> '


@dataclasses.dataclass(frozen=True)
class PromptFlags(SamplingFlags):
    """Of prompts.

    Args:
        prompt: continue this text, and end, instead of asking for prompts. prompts_file: continue each line
        of this file, or the field `prompt` of each of its JSON lines, and write
            JSON lines: prompt, text, tokens, and finished (whether the text ended itself, by --stop or
            --truncate). Started again with the same --output, it goes on where that ends.
        logprobs: with prompts_file, add the log-probability of each token.
        include_prefix: print the prompt before each continuation.
        special_tokens: in prompts, special tokens of the model, such as <|endoftext|>, are themselves; false:
            they are text like any other.
    """
    nsamples: int = 1
    prompt: str | None = None
    prompts_file: str | None = None
    logprobs: bool = False
    include_prefix: bool = False
    special_tokens: bool = False

    def __post_init__(self):
        self.check('nsamples', self.nsamples >= 1, '1 or more')
        super().__post_init__()
        require(self.prompt != '', '--prompt is empty; give at least one character')
        require(self.prompt is None or self.prompts_file is None, 'give --prompt or --prompts_file, not both')
        require(self.prompts_file is not None or not self.logprobs, '--logprobs needs --prompts_file')
        require(self.prompts_file is None or not self.include_prefix,
                '--include_prefix is for text; JSON lines hold the prompt')


@cli.flags_from(PromptFlags)
def interact_model(*args, **kwargs):
    """Prints continuations of prompts."""
    flags = PromptFlags(*args, **kwargs)
    cli.load_tensorflow()
    with cli.default_signal_handlers():
        from generation import samples
        writer = samples.SampleWriter(flags, unconditional=False, special_tokens=flags.special_tokens)
    if flags.prompts_file is not None:
        writer.complete(flags.prompts_file, flags.output, flags.logprobs)
        return
    with samples.opened(flags.output) as file:
        def write(prompt):
            prefix = prompt if flags.include_prefix else ''
            writer.write(file, prompt, prefix, stream=flags.output is None)
        if flags.prompt is not None:
            write(flags.prompt)
            return
        for text in prompts():
            with tolerant():
                write(text)
            print('=' * 80, file=file, flush=True)


@contextlib.contextmanager
def tolerant():
    """With a person at the terminal, a wrong prompt is told, and Ctrl-C ends no more than its answer."""
    try:
        yield
    except (InputError, KeyboardInterrupt) as error:
        if not sys.stdin.isatty():
            raise
        if isinstance(error, InputError):
            print(error, file=sys.stderr)


def prompts():
    """Lines from stdin until its end. They are asked for on stderr, so that stdout holds samples alone."""
    cli.set_encoding(sys.stdin, 'surrogateescape')  # other bytes than UTF-8 are for the encoder to refuse
    editing = sys.stdin.isatty() and sys.stdout.isatty()
    if editing:
        with contextlib.suppress(ImportError):  # not everywhere
            import readline  # noqa: F401  input() then edits its line, keeps a history and prints ASK itself
    while True:
        if not editing:
            print(ASK, end='', file=sys.stderr, flush=True)
        try:
            text = input(ASK if editing else '').rstrip('\r').removeprefix(paths.BYTE_ORDER_MARK)
        except EOFError:
            print(file=sys.stderr)
            return
        if text:
            yield text
        else:
            print('Prompt should not be empty!', file=sys.stderr)


if __name__ == '__main__':
    cli.run(interact_model)
