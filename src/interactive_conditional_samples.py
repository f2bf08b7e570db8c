#!/usr/bin/env python3
"""Continues prompts, asked for one after another, given by --prompt, or those of a file, given by --prompts_file:
./src/interactive_conditional_samples.py."""
import contextlib
import sys

import cli
from errors import InputError, require

ASK = 'Model prompt >>> '


def interact_model(model_name: str = '124M', seed: int | None = None, nsamples: int = 1, batch_size: int = 1,
                   length: int | None = None, temperature: float = 1, top_k: int = 0, top_p: float = 1,
                   models_dir: str = 'models', checkpoint: str | None = None, precision: str = 'float32',
                   repetition_penalty: float = 1, prompt: str | None = None, prompts_file: str | None = None,
                   logprobs: bool = False, truncate: str | None = None, stop: tuple[str, ...] = (),
                   include_prefix: bool = False, output: str | None = None):
    """Prints continuations of prompts.

    Args:
        model_name: a directory of models_dir; of a training run with --models_dir checkpoint.
        seed: the same seed and prompt give the same samples; None for new ones.
        nsamples: how many for each prompt.
        batch_size: how many are drawn side by side. It does not change what is drawn.
        length: tokens in a sample; None for half of n_ctx. Past n_ctx, the prompt counted, the model sees the last 3/4
            to 4/4 of n_ctx tokens.
        temperature: below 1 the likely becomes likelier, above less so; 0 for always the likeliest token.
        top_k: draw from this many of the likeliest tokens; 0 for all. 40 is a good value.
        top_p: draw from the likeliest tokens that together have this probability; 0 or 1 for all.
        models_dir: where models are.
        checkpoint: one of the model's checkpoints, such as model-best or model-1000, or the path of any; None
            for the newest.
        precision: of the weights: float32, bfloat16 or int8. Less memory, and faster on a CPU.
        repetition_penalty: above 1 what prompt and sample have already becomes less likely, below 1 likelier.
        prompt: continue this text, and end, instead of asking for prompts.
        prompts_file: continue each line of this file, or the field `prompt` of each of its JSON lines, and write JSON
            lines: prompt, text, tokens, and finished (whether the text ended itself, by --stop or --truncate). Started
            again with the same --output, it goes on where that ends.
        logprobs: with prompts_file, add the log-probability of each token.
        truncate: end a sample where this text appears, which is left out; often '<|endoftext|>'.
        stop: the same; may be given several times.
        include_prefix: print the prompt before each continuation.
        output: a file for the samples, instead of the terminal.
    """
    require(nsamples >= 1, f'--nsamples must be 1 or more, not {nsamples}')
    require(prompt != '', '--prompt is empty; give at least one character')
    require(prompt is None or prompts_file is None, 'give --prompt or --prompts_file, not both')
    require(prompts_file is not None or not logprobs, '--logprobs needs --prompts_file')
    require(prompts_file is None or not include_prefix, '--include_prefix is for text; JSON lines hold the prompt')
    cli.load_tensorflow()
    with cli.ending_at_once():
        import samples
        drawn = samples.Samples(
            model_name, models_dir, checkpoint, precision, seed=seed, nsamples=nsamples, batch_size=batch_size,
            length=length, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty,
            truncate=truncate, stop=stop, unconditional=False)
    if prompts_file is not None:
        drawn.complete(prompts_file, output, logprobs)
        return
    with samples.opened(output) as file:
        if prompt is not None:
            drawn.write(file, prompt, prefix=prompt if include_prefix else '', stream=output is None)
            return
        for text in prompts():
            with tolerant():
                drawn.write(file, text, prefix=text if include_prefix else '', stream=output is None)
            print('=' * 80, file=file, flush=True)


@contextlib.contextmanager
def tolerant():
    """With a person at the terminal, a prompt that cannot be used is told, and Ctrl-C ends no more than its answer."""
    try:
        yield
    except (InputError, KeyboardInterrupt) as error:
        if not sys.stdin.isatty():
            raise
        if isinstance(error, InputError):
            print(error, file=sys.stderr)


def prompts():
    """Lines from stdin until its end; what asks for them goes to stderr, so that stdout holds samples alone."""
    cli.set_encoding(sys.stdin, 'surrogateescape')  # other bytes than UTF-8 are for the encoder to refuse
    editing = sys.stdin.isatty() and sys.stdout.isatty()
    if editing:
        with contextlib.suppress(ImportError):  # not everywhere
            import readline  # noqa: F401  input() then edits its line and keeps a history; it prints the prompt itself
    while True:
        if not editing:
            print(ASK, end='', file=sys.stderr, flush=True)
        try:
            text = input(ASK if editing else '')
        except EOFError:
            print(file=sys.stderr)
            return
        if text:
            yield text
        else:
            print('Prompt should not be empty!', file=sys.stderr)


if __name__ == '__main__':
    cli.run(interact_model)
