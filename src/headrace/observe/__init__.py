"""How a running headrace can be watched. A leaf: anyone may use it, and it costs next to nothing when it is off.

`logs` where the loggers below `headrace` write to, and how it reads. `control` the local socket on which a running
program says how it is, `running` finds those sockets and asks. `metrics` what is measured, by name, and `exporter` the
port where it can be had. `times` where the time of a stream goes. `tracing` spans, and `trace_export` where they go.
"""
