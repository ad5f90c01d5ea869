"""A remote share: what runs on the machine that wants the files.

`target` what a person types · `session` connect, prove, ask · `remote` the Python API on top of it · `file` a remote
file as a file object · `get` a whole transfer · `plan` what it has to do · `options` what can be asked of one ·
`filters` which files.
"""
