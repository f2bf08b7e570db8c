#!/usr/bin/env python3
"""Continues prompts: asked for one after another, of --prompt, or of --prompts_file."""
import contextlib
import dataclasses
import sys

from command_line import cli
from command_line.flags import SamplingFlags, flag

from errors import InputError, require
from storage.text_files import BYTE_ORDER_MARK

ASK = 'Model prompt >>> '


@dataclasses.dataclass(frozen=True)
class PromptFlags(SamplingFlags):
    """Prints continuations of prompts."""
    nsamples: int = flag(1, 'how many for each prompt', 1)
    prompt: str | None = flag(None, 'continue this text instead of asking for prompts')
    prompts_file: str | None = flag(None, (
        'continue each line of this file, or the field `prompt` of JSON lines, and write JSON lines; if '
        '--output has some already, the others'))
    logprobs: bool = flag(False, 'with prompts_file, add the log-probability of each token')
    include_prefix: bool = flag(False, 'print the prompt before each continuation')
    template: str | None = flag(None, "words around a prompt, as in training; None: the run's; '': none")
    special_tokens: bool = flag(False, 'in prompts, <|endoftext|> or another special token is one id')

    def __post_init__(self):
        super().__post_init__()
        in_file = self.prompts_file is not None
        require(self.prompt != '', '--prompt is empty; give a text')
        self.check('prompts_file', self.prompts_file != '', 'the name of a file')
        require(self.prompt is None or not in_file, 'give --prompt or --prompts_file, not both')
        require(in_file or not self.logprobs, '--logprobs needs --prompts_file')
        require(not in_file or not self.include_prefix, '--include_prefix is for text')


@cli.takes(PromptFlags)
def interact_model(flags):
    with cli.load_tensorflow():
        from generation import samples
        writer = samples.SampleWriter(flags, unconditional=False, special_tokens=flags.special_tokens,
                                      template_text=flags.template)
    if flags.prompts_file is not None:
        writer.complete(flags.prompts_file, flags.output, flags.logprobs)
        return
    asks = flags.prompt is None
    with samples.opened(flags.output) as file:
        for prompt in ask_for_prompts() if asks else [flags.prompt]:
            try:
                writer.write(file, prompt, prompt if flags.include_prefix else '')
            except (InputError, KeyboardInterrupt) as error:
                if not (asks and sys.stdin.isatty()):
                    raise
                if isinstance(error, InputError):  # at a terminal the next prompt may be better
                    print(error, file=sys.stderr)
            if asks:
                print('=' * 80, file=file, flush=True)


def ask_for_prompts():
    """Yields lines of stdin, asked for on stderr: stdout holds samples alone."""
    cli.set_encoding(sys.stdin, 'surrogateescape')  # the encoder refuses bytes that are not UTF-8
    editing = sys.stdin.isatty() and sys.stdout.isatty()
    if editing:
        with contextlib.suppress(ImportError):  # not everywhere
            import readline  # noqa: F401  for input() to edit its line and keep a history
    while True:
        if not editing:
            print(ASK, end='', file=sys.stderr, flush=True)
        try:
            text = input(ASK if editing else '').rstrip('\r').removeprefix(BYTE_ORDER_MARK)
        except EOFError:
            print(file=sys.stderr)
            return
        if text:
            yield text
        else:
            print('Prompt should not be empty!', file=sys.stderr)


if __name__ == '__main__':
    cli.run(interact_model)
