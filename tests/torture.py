#!/usr/bin/env python3
"""Faults injected on purpose, and counts of what came of them. The suite runs short forms; `make torture`
the long:

    tests/torture.py all
    tests/torture.py mutations --count 1000 --seed 7
    tests/torture.py inputs --count 1000000 --seed 1

A campaign prints its counts, a line each, or raises at the first promise that is broken, naming the fault
and the seed.
"""
# ruff: noqa: E402
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'src'))

from command_line import cli

cli.load_tensorflow()  # before what imports it with all its start-up lines

import damage
import fuzz
import kills
import long_run

CAMPAIGNS = {  # name: the function, and what it is given in `all` besides the seed
    'mutations': (damage.mutations, {'count': 2000}),
    'special_files': (damage.special_files, {}),
    'odd_states': (damage.odd_states, {'count': 500}),
    'inputs': (fuzz.inputs, {'count': 1_000_000}),
    'coverage': (fuzz.coverage, {'runs': 20_000}),
    'kills_of_training': (kills.kills_of_training, {'count': 100}),
    'kills_of_adapters': (kills.kills_of_adapters, {'count': 50}),
    'kills_of_scripts': (kills.kills_of_scripts, {'count': 20}),
    'long_run': (long_run.long_run, {'steps': 10_000}),
}


def every_campaign(seed: int = 1):
    """All campaigns in their long forms, one after another."""
    for name, (campaign, sizes) in CAMPAIGNS.items():
        for what, count in campaign(**sizes, seed=seed).items():
            print(f'{name}: {what}: {count if isinstance(count, str) else f"{count:,}"}', flush=True)


if __name__ == '__main__':
    cli.run({'all': every_campaign, **{name: campaign for name, (campaign, _) in CAMPAIGNS.items()}})
