#!/usr/bin/env python3
"""All benchmarks, one table: ./benchmarks/bench.py, or `make bench`. A benchmark is a file with rows()."""
import measure  # noqa: F401  before the project's own: it makes their import possible

from command_line import cli

import encoding_speed
import large_models
import sampling_speed
import table
import training_speed

BENCHMARKS = (training_speed, encoding_speed, sampling_speed, large_models)


def bench():
    """Measures speed and memory beside the peers that are installed, and prints one table."""
    table.show(lambda: [row for benchmark in BENCHMARKS for row in rows_of(benchmark)])


def rows_of(benchmark):
    try:
        yield from benchmark.rows()
    except RuntimeError as error:  # a peer that does not run; other benchmarks go on
        yield table.Row(f'{benchmark.__name__} ended here', None, None, '', note=str(error))


if __name__ == '__main__':
    cli.run(bench)
