"""Files in a sandbox."""

from __future__ import annotations

from foundry_ray.core.errors import InvalidInput, NotFound, Unavailable
from foundry_ray.integrations.sandbox_agent.base import Entry
from foundry_ray.integrations.sandbox_agent.transport import Wire, refused


class Files:
    """Reads and writes files; see the port for what each method promises."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def read_file(self, path: str) -> bytes:
        """Return a file's content."""
        answer = await self._wire.send("GET", "/v1/fs/file", params={"path": path})
        if answer.is_error:
            raise refused(answer, NotFound(f"There is no file {path}."))
        return answer.content

    async def write_file(self, path: str, content: bytes) -> None:
        """Write a whole file, making its directories."""
        answer = await self._wire.send("PUT", "/v1/fs/file", params={"path": path}, content=content)
        if answer.is_error:
            raise refused(answer, InvalidInput(f"{path} cannot be written."))

    async def list_directory(self, path: str) -> list[Entry]:
        """Return the entries of a directory."""
        answer = await self._wire.send("GET", "/v1/fs/entries", params={"path": path})
        if answer.is_error:
            raise refused(answer, NotFound(f"There is no directory {path}."))
        return [
            Entry(name=told["name"], path=told["path"], kind=told["entryType"], size=told["size"])
            for told in answer.json()
        ]

    async def make_directory(self, path: str) -> None:
        """Make a directory and those above it."""
        answer = await self._wire.send("POST", "/v1/fs/mkdir", params={"path": path})
        if answer.is_error:
            raise refused(answer, InvalidInput(f"{path} cannot be made."))

    async def delete_path(self, path: str) -> None:
        """Remove a file or a whole directory."""
        params = {"path": path, "recursive": "true"}
        answer = await self._wire.send("DELETE", "/v1/fs/entry", params=params)
        if answer.is_error:
            stat = await self._wire.send("GET", "/v1/fs/stat", params={"path": path})
            if not stat.is_error:
                raise refused(answer, Unavailable(f"{path} could not be removed."))
