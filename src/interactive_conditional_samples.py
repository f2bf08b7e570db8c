#!/usr/bin/env python3
"""Continues prompts, asked for one after another or given by --prompt: ./src/interactive_conditional_samples.py."""
import sys

import cli
from errors import InputError, require


def interact_model(model_name: str = '124M', seed: int | None = None, nsamples: int = 1, batch_size: int = 1,
                   length: int | None = None, temperature: float = 1, top_k: int = 0, top_p: float = 1,
                   models_dir: str = 'models', checkpoint: str | None = None, prompt: str | None = None,
                   truncate: str | None = None, include_prefix: bool = False, output: str | None = None):
    """Prints continuations of prompts.

    Args:
        model_name: a directory of models_dir; of a training run with --models_dir checkpoint.
        seed: the same seed and prompt give the same samples; None for new ones.
        nsamples: how many for each prompt.
        batch_size: how many are drawn side by side. It does not change what is drawn.
        length: tokens in a sample, which with the prompt's may be n_ctx at most; None for half of n_ctx.
        temperature: below 1 the likely becomes likelier, above less so; 0 for always the likeliest token.
        top_k: draw from this many of the likeliest tokens; 0 for all. 40 is a good value.
        top_p: draw from the likeliest tokens that together have this probability; 0 or 1 for all.
        models_dir: where models are.
        checkpoint: one of the model's checkpoints, such as model-best or model-1000; None for the newest.
        prompt: continue this text, and end, instead of asking for prompts.
        truncate: end a sample where this text appears, which is left out; often '<|endoftext|>'.
        include_prefix: print the prompt before each continuation.
        output: a file for the samples, instead of the terminal.
    """
    require(nsamples >= 1, f'--nsamples must be 1 or more, not {nsamples}')
    require(prompt != '', '--prompt is empty; give at least one character')
    cli.load_tensorflow()
    import generator
    samples = generator.Samples(
        model_name, models_dir, checkpoint, seed=seed, nsamples=nsamples, batch_size=batch_size, length=length,
        temperature=temperature, top_k=top_k, top_p=top_p, truncate=truncate, unconditional=False)
    with generator.opened(output) as file:
        for text in [prompt] if prompt is not None else prompts():
            try:
                samples.write(file, text, prefix=text if include_prefix else '')
                if prompt is None:
                    print('=' * 80, file=file, flush=True)
            except InputError as error:
                if prompt is not None or not sys.stdin.isatty():
                    raise
                print(error, file=sys.stderr)  # a person at a terminal tries again


def prompts():
    """Lines from stdin until its end; what asks for them goes to stderr, so that stdout holds samples alone."""
    sys.stdin.reconfigure(errors='surrogateescape')  # other bytes than UTF-8 are for the encoder to refuse
    while True:
        print('Model prompt >>> ', end='', file=sys.stderr, flush=True)
        try:
            text = input()
        except EOFError:
            print(file=sys.stderr)
            return
        if text:
            yield text
        else:
            print('Prompt should not be empty!', file=sys.stderr)


if __name__ == '__main__':
    cli.run(interact_model)
