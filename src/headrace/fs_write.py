"""A file that is written into a share through fsspec: spooled to this disk, and sent when it is closed."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.client.options import GetOptions
from headrace.client.put import Put
from headrace.client.session import Session
from headrace.engine.plan import OnExist
from headrace.fs_errors import as_os_errors
from headrace.protocol.paths import RelPath


class Upload(io.RawIOBase):
    """Binary, from the front on. Nobody sees any of it in the share before it was closed, and then all of it; nothing
    where a `with` block failed."""

    def __init__(
        self, connect: Callable[[], Session], where: RelPath, path: str, *, new: bool, patience: float
    ) -> None:
        """connect: a session of its own, once there is something to send. where: in the share; path: the same as it
        was asked for. new: nothing may be there. patience: seconds for which the host may be away meanwhile."""
        super().__init__()
        self._connect = connect
        self._where = where
        self._name = path
        self._how = GetOptions(on_exist=OnExist.FAIL if new else OnExist.OVERWRITE, retry_for=patience)
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-put-")
        self._path = Path(self._folder.name) / "file"
        self._file = self._path.open("wb", buffering=0)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """All of `data`; how many bytes that are."""
        left = memoryview(data).cast("B")
        count = len(left)
        while left:
            left = left[self._file.write(left) or 0 :]
        return count

    def tell(self) -> int:
        return self._file.tell()

    def discard(self) -> None:
        """Closes without sending."""
        if not self.closed:
            self._file.close()
            self._folder.cleanup()
            super().close()

    def close(self) -> None:
        """Sends what was written. Raises what that raises; the file is closed all the same."""
        if self.closed:
            return
        try:
            self._file.close()
            self._send()
        finally:
            self.discard()

    def _send(self) -> None:
        with as_os_errors(self._name), self._connect() as session:
            result = Put(session, [self._path], self._where, self._how).run()
            if result.error:
                raise result.error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        if why is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        self.discard()  # who never closed it never said that it was whole
