"""setup.py: what pyproject.toml cannot say: a package has build.json, which says what it was built from.

How it works   daemon/version.py finds the commit, and reads the file later. The date is today's, or that of
               $SOURCE_DATE_EPOCH. An editable installation has no such file: its sources change.
"""

import json
import os
import runpy
import time
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildPy(build_py):
    """Copies the modules, and adds build.json."""

    def run(self) -> None:
        """Do it."""
        super().run()
        if self.editable_mode:
            return
        of = runpy.run_path(str(ROOT / "daemon" / "version.py"))
        seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
        date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
        text = json.dumps({"commit": of["source_commit"](ROOT), "date": date})
        (Path(self.build_lib) / "polyvol" / "daemon" / of["BUILD_FILE"]).write_text(f"{text}\n")


setup(cmdclass={"build_py": BuildPy})
