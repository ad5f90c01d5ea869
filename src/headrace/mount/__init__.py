"""A share as a folder of this machine, by FUSE. Linux, read-only.

`wire` the kernel's protocol · `device` mounting, and what is missing for it · `server` answers the kernel on threads ·
`nodes` what the kernel knows by number · `fs` the file system · `table` what is mounted here · `unmount` without
hanging · `process` a mount in the background · `mounted` all of it together.
"""
