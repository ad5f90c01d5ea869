"""What developers measure: one module a question, and the gates of CI. `scripts/bench` runs them, from the root.

They stand on `headrace.bench`, the harness that `headrace bench` is made of: processes that are surely ended, peers,
links, runs and rounds, tables. `session` is the command line that the cases for bulk and trees share.
"""
