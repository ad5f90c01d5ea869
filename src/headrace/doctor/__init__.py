"""What this machine can do for a transfer, and where the time goes on the way to a share.

`machine` tries things out, for real · `checks` what the outcome means, and the one command that would mend it · `path`
measures the way to a share, one step after the other.
"""
