"""Benchmarks: headrace beside the tools that people use today, on this machine, over loopback.

Run from the repository's root: `.venv/bin/python -m bench.bulk`, `bench.tree`, `bench.first_byte`, `bench.startup`;
`scripts/bench` runs them all.

`process` programs that are surely ended · `procfs` what they cost · `peers` headrace, scp, rsync and the limits behind
one face, `sshd` and `loopback` their servers · `measure` runs, rounds and figures · `session` what the bulk and the
tree benchmark share · `workspace` files to copy, and checks of the copies · `report` tables and JSON.
"""
