#!/usr/bin/env python3
"""Measures Eddyline against the ceiling of this machine and prints the table of RESULTS.md.

The ceiling (bench/yardstick in the shared folder) is the least program that does the same visible
work: it parses the same JSON, checksums it and group-commits it with fdatasync; it sends a page or a
frame that it has ready. Both are driven with the same clients in turn, in random order within a
round; a figure is the median of the rounds, a ratio is one of medians.

    loadtest/bench.py [SECTION ...]         all sections, or only these
    one node:          one hundred stream read start partitions many restart
    groups and live:   fanout single tail latency idle commits poll
"""

import argparse
import tempfile
from pathlib import Path

from harness import ROOT, install_wrk, machine, raise_open_files, say
from live import Live
from node import Node

SECTIONS = Node.SECTIONS + Live.SECTIONS


class Bench(Node, Live):
    """All sections."""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each run")
    parser.add_argument("--restart-gb", type=float, default=10, help="loaded before the restart")
    parser.add_argument("--eddyline", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--yardstick", type=Path,
                        help="folder with ceiling and fanout, instead of building them")
    parser.add_argument("--dir", type=Path, default=ROOT / "target",
                        help="where data goes: the disk that is measured")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {' '.join(SECTIONS)}")
    install_wrk()
    raise_open_files()
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir) as work:
        bench = Bench(options, Path(work))
        bench.build()
        about = machine()
        for section in options.sections or SECTIONS:
            say(f"== {section}")
            getattr(bench, section)()
    print(f"{about}; {options.rounds} rounds of {options.seconds} s, medians\n")
    print(bench.table())


if __name__ == "__main__":
    main()
