"""How bytes are scheduled: what is done with a file, the queue, lanes and exchanges."""
