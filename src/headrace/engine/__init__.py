"""How bytes are scheduled.

`plan` what is to be done with each entry of a tree · `exchange` how one chunk is asked for and received, in each
phase · `fetch` the workers that keep requests in flight · `queue` the jobs and tasks they share · `progress` counters.
"""
