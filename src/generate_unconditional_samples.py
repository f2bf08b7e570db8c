#!/usr/bin/env python3
"""Prints samples that begin with <|endoftext|> alone."""
from command_line import cli
from command_line.flags import SamplingFlags

from errors import require


@cli.takes(SamplingFlags)
def sample_model(flags):
    require(flags.nsamples or flags.output is None, '--output needs --nsamples')
    with cli.load_tensorflow():
        from generation import samples
        writer = samples.SampleWriter(flags, unconditional=True)
    with samples.opened(flags.output) as file:
        writer.write(file)


if __name__ == '__main__':
    cli.run(sample_model)
