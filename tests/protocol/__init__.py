"""The wire: frames, messages, paths, codes, PAKE and handshake, and that docs/protocol.md says the same."""
