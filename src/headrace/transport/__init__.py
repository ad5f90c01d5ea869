"""How bytes travel.

`base` what a Connection and a Stream promise · `tcp` both over TCP · `records` TLS as a record layer without a socket ·
`zerocopy` files to sockets · `pacing` rate limits · `ktls` what the kernel could do · `framed` messages over a Stream ·
`identity` the host's certificate · `trust` what was learnt at first contact: pinned hosts, paired peers.
"""
