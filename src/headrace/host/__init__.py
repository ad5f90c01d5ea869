"""A shared folder: what runs on the machine that has the files.

`server` listens and owns the threads · `session` one connection, from handshake to goodbye · `requests` answers the
requests of a session · `guesses` counts wrong codes and locks.
"""
