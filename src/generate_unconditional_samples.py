#!/usr/bin/env python3
"""Prints samples that begin with <|endoftext|> alone: ./src/generate_unconditional_samples.py [flags]."""
from command_line import cli
from command_line.flags import SamplingFlags
from errors import require


@cli.flags_from(SamplingFlags)
def sample_model(*args, **kwargs):
    """Prints unconditional samples of a model."""
    flags = SamplingFlags(*args, **kwargs)
    require(flags.nsamples or flags.output is None,
            '--output needs --nsamples: without an end the file would never be whole')
    cli.load_tensorflow()
    with cli.default_signal_handlers():
        from generation import samples
        writer = samples.SampleWriter(flags, unconditional=True)
    with samples.opened(flags.output) as file:
        writer.write(file, stream=flags.output is None)


if __name__ == '__main__':
    cli.run(sample_model)
