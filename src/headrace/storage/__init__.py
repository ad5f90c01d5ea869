"""How bytes rest: everything that touches a disk, on both sides. All names are bytes, all opens go by descriptor.

The host: `tree` what a share offers, race-free · `source` a file being read · `manifest` its hashes, remembered.
The receiver: `destination` a folder that nothing escapes from · `partial` a file in flight, with its `journal`.
Both: `chunks` sizes and hashes · `oserrors` errno to errors.py · `inflight`, `dirs`, `rawio`, `libc` small parts.
"""
