"""What to read ahead of a reader. Pure logic: no I/O, no clock, no thread."""
