#!/usr/bin/env python3
"""All benchmarks, one table: ./benchmarks/bench.py, or `make bench`. A new one is a file beside this, with rows()."""
import encoding
import sampling
import table
import training

import cli

BENCHMARKS = (training, encoding, sampling)


def bench():
    """Measures speed and memory beside the peers that are installed, and prints one table."""
    table.show(lambda: [row for benchmark in BENCHMARKS for row in benchmark.rows()])


if __name__ == '__main__':
    cli.run(bench)
