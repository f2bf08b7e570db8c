#!/usr/bin/env python3
"""Prints samples that begin with nothing but <|endoftext|>: ./src/generate_unconditional_samples.py [flags]."""
import cli
from errors import require


def sample_model(model_name: str = '124M', seed: int | None = None, nsamples: int = 0, batch_size: int = 1,
                 length: int | None = None, temperature: float = 1, top_k: int = 0, top_p: float = 1,
                 models_dir: str = 'models', checkpoint: str | None = None, precision: str = 'float32',
                 repetition_penalty: float = 1, truncate: str | None = None, stop: tuple[str, ...] = (),
                 output: str | None = None):
    """Prints unconditional samples of a model.

    Args:
        model_name: a directory of models_dir; of a training run with --models_dir checkpoint.
        seed: the same seed gives the same samples; None for new ones.
        nsamples: how many; 0 for no end.
        batch_size: how many are drawn side by side. It does not change what is drawn.
        length: tokens in a sample; None for n_ctx. Past n_ctx the model sees the last 3/4 to 4/4 of n_ctx tokens.
        temperature: below 1 the likely becomes likelier, above less so; 0 for always the likeliest token.
        top_k: draw from this many of the likeliest tokens; 0 for all. 40 is a good value.
        top_p: draw from the likeliest tokens that together have this probability; 0 or 1 for all.
        models_dir: where models are.
        checkpoint: one of the model's checkpoints, such as model-best or model-1000, or the path of any; None
            for the newest.
        precision: of the weights: float32, bfloat16 or int8. Less memory, and faster on a CPU.
        repetition_penalty: above 1 what a sample has already becomes less likely, below 1 likelier.
        truncate: end a sample where this text appears, which is left out; often '<|endoftext|>'.
        stop: the same; may be given several times.
        output: a file for the samples, instead of the terminal.
    """
    require(nsamples or output is None, '--output needs --nsamples: without an end the file would never be whole')
    cli.load_tensorflow()
    with cli.ending_at_once():
        import samples
        drawn = samples.Samples(
            model_name, models_dir, checkpoint, precision, seed=seed, nsamples=nsamples, batch_size=batch_size,
            length=length, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty,
            truncate=truncate, stop=stop, unconditional=True)
    with samples.opened(output) as file:
        drawn.write(file, stream=output is None)


if __name__ == '__main__':
    cli.run(sample_model)
