"""headrace's errors as those of the operating system's family, which is what fsspec's users expect."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from headrace.errors import (
    DestinationExistsError,
    HeadraceError,
    HostAwayError,
    NotFoundError,
    RefusedError,
    SourceChangedError,
    UnreachableError,
    UsageError,
)


@contextlib.contextmanager
def as_os_errors(path: str) -> Iterator[None]:
    """What programs that know files expect. The sentence is headrace's; so is the cause."""
    try:
        yield
    except UsageError as why:
        raise ValueError(str(why)) from why
    except NotFoundError as why:
        raise FileNotFoundError(errno.ENOENT, why.message, path) from why
    except RefusedError as why:
        raise PermissionError(errno.EACCES, str(why), path) from why
    except DestinationExistsError as why:
        raise FileExistsError(errno.EEXIST, str(why), path) from why
    except SourceChangedError as why:
        raise OSError(errno.ESTALE, str(why), path) from why
    except HostAwayError as why:
        raise TimeoutError(errno.ETIMEDOUT, str(why), path) from why
    except UnreachableError as why:
        raise ConnectionError(str(why)) from why
    except HeadraceError as why:
        raise OSError(errno.EIO, str(why), path) from why
