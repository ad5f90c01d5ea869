"""The command line. Results go to standard output; progress, prompts and logs to standard error.

`main` the entry point · `app` the commands by name and what becomes of an error · `options` every option, once ·
`settings` the config file · `reach` from a target to a session · `signals` work that Ctrl-C ends at once · `output`
events, bytes and the progress line · `text` sizes, rates and times for people. Then one module a command, loaded when
it is called: `share`, `ls`, `get`, `cat`, `peers`, `doctor`, `completion`.
"""
