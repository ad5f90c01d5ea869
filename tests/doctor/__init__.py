"""What this machine can do: every outcome of every check on machines made up for it, and this one for real."""
