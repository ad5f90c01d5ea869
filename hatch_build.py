"""What a wheel has beside the package: manual pages and completions, made from the command line, and the user unit."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

UNIT = "headrace@.service"


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        sys.path[:0] = [str(root / "src"), str(root)]  # a build from the source archive has no other headrace
        from scripts.pages import commands

        self._made = tempfile.TemporaryDirectory(prefix="headrace-build-")
        for place, text in {**commands.manual(), **commands.completions()}.items():
            file = Path(self._made.name) / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
            build_data["shared_data"][str(file)] = place
        build_data["shared_data"][str(root / "deploy" / UNIT)] = f"share/systemd/user/{UNIT}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._made.cleanup()
