"""The host: wrong codes, requests, sessions."""
