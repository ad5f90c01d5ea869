"""How bytes travel.

`base` what a Connection and a Stream promise · `tcp` both over TCP with TLS 1.3 · `framed` messages over a Stream ·
`identity` the host's certificate · `trust` what was learnt at first contact: pinned hosts, paired peers.
"""
