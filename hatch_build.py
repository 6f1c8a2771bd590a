"""Compiles the C++ library into the wheel, where there is a compiler."""

from __future__ import annotations

import runpy
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """Named in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Makes the wheel one of this platform if the library could be built, and leaves it one for all if not."""
        builder = runpy.run_path("src/headrace/kernels/build.py")
        try:
            builder["build"]()
        except builder["BuildError"] as error:
            self.app.display_warning(f"Headrace without its C++ library: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{platform}", artifacts=["src/headrace/kernels/*.so"])
