#!/usr/bin/env python3
"""Prints samples that begin with <|endoftext|> alone."""
from command_line import cli
from command_line.flags import SamplingFlags
from errors import require


@cli.flags_from(SamplingFlags)
def sample_model(*args, **kwargs):
    flags = SamplingFlags(*args, **kwargs)
    require(flags.nsamples or flags.output is None, '--output needs --nsamples')
    cli.load_tensorflow()
    with cli.default_signal_handlers():
        from generation import samples
        writer = samples.SampleWriter(flags, unconditional=True)
    with samples.opened(flags.output) as file:
        writer.write(file)


if __name__ == '__main__':
    cli.run(sample_model)
