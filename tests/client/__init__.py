"""The client: targets, filters, remote files."""
