"""The kernel's FUSE protocol, as far as a read-only file system speaks it: opcodes, flags and structs.

Source: include/uapi/linux/fuse.h. Version 7.31 (Linux 5.4) is the oldest that is spoken; what came later is used where
the kernel offers it. Numbers are in the machine's own byte order, structs have no hidden padding.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 38  # what we speak at most; the kernel speaks the lower of both
OLDEST_MINOR: Final = 31
ROOT_NODE: Final = 1


class Op(IntEnum):
    """What the kernel asks."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


NO_REPLY: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})

# ---- flags of INIT -------------------------------------------------------------------------------------------------

ASYNC_READ: Final = 1 << 0  # several reads of one file at once
DO_READDIRPLUS: Final = 1 << 13  # directories with attributes
READDIRPLUS_AUTO: Final = 1 << 14  # only when somebody looks at the attributes
PARALLEL_DIROPS: Final = 1 << 18  # several look-ups in one directory at once
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22  # requests of more than 128 KiB
CACHE_SYMLINKS: Final = 1 << 23
WANTED: Final = (
    ASYNC_READ | DO_READDIRPLUS | READDIRPLUS_AUTO | PARALLEL_DIROPS | ABORT_ERROR | MAX_PAGES | CACHE_SYMLINKS
)

# ---- flags of OPEN and OPENDIR, answered -----------------------------------------------------------------------------

FOPEN_DIRECT_IO: Final = 1 << 0  # every read comes to us
FOPEN_KEEP_CACHE: Final = 1 << 1  # what the kernel has of it still holds
FOPEN_CACHE_DIR: Final = 1 << 3  # the kernel may keep the listing
FOPEN_NOFLUSH: Final = 1 << 5  # nothing to do at close(2)

# ---- notices to the kernel -------------------------------------------------------------------------------------------

NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
EXPIRE_ONLY: Final = 1 << 0  # Linux 6.2; older kernels drop the entry instead

# ---- structs ---------------------------------------------------------------------------------------------------------

IN_HEADER: Final = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER: Final = Struct("=IiQ")  # len error unique
INIT_IN: Final = Struct("=IIII")  # major minor max_readahead flags
INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")  # major minor max_readahead flags max_background congestion_threshold
#                                              max_write time_gran max_pages map_alignment flags2
ATTR: Final = Struct("=QQQqqqIIIIIIIIII")  # ino size blocks atime mtime ctime (seconds) atimensec mtimensec ctimensec
#                                            mode nlink uid gid rdev blksize flags
ENTRY_HEAD: Final = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
ATTR_HEAD: Final = Struct("=QII")  # attr_valid attr_valid_nsec dummy
GETATTR_IN: Final = Struct("=IIQ")  # getattr_flags dummy fh
OPEN_OUT: Final = Struct("=QII")  # fh open_flags padding
READ_IN: Final = Struct("=QQI")  # fh offset size
RELEASE_IN: Final = Struct("=Q")  # fh
FORGET_IN: Final = Struct("=Q")  # nlookup
BATCH_FORGET_IN: Final = Struct("=II")  # count dummy
FORGET_ONE: Final = Struct("=QQ")  # nodeid nlookup
INTERRUPT_IN: Final = Struct("=Q")  # unique
STATFS_OUT: Final = Struct("=QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize
DIRENT: Final = Struct("=QQII")  # ino off namelen type; the name follows, padded to 8 bytes
DIRENT_PLUS: Final = Struct(f"={ENTRY_HEAD.format[1:]}{ATTR.format[1:]}{DIRENT.format[1:]}")
INVAL_INODE: Final = Struct("=Qqq")  # nodeid offset length
INVAL_ENTRY: Final = Struct("=QII")  # parent namelen flags; the name and a NUL follow

GETATTR_FH: Final = 1 << 0  # GETATTR_IN.fh counts
