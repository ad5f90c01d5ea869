"""Fuzzing of everything that reads what a peer sent. `scripts/fuzz` runs it; the corpus is run by the tests as well."""
