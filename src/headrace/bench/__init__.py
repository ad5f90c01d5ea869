"""`headrace bench`: headrace beside the tools that people use today, on this machine. The harness and the suites.

`process` programs that are surely ended · `procfs` what they cost · `workspace` files to copy, and checks of the copies
· `peers` programs that copy and the limits, behind one face, `mounts` those that mount; `sshd` and `loopback` their
servers · `netlab` two hosts and a link between them, by `link` and `tunnel`; `far` peers across it, `flow` and `ping`
what it does · `pingpong` a bare exchange · `measure` runs, rounds and figures · `mountwork` what is done with a mount ·
`report` tables and JSON.
"""
