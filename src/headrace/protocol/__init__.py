"""The wire, sans-IO: what is said, in which bytes, in which order. No socket, file, thread or clock in here.

`messages` one struct per message · `frames` bytes to messages and back, with limits · `session` the handshake as
state machines · `pake` SPAKE2 and what is derived from it · `codes` the short code · `paths` share-relative paths.
"""
