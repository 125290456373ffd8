"""Backups that are made while everything is killed, themselves included, and what is in them in the end."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

from scripts.trials import preloaded
from scripts.trials.crash_check import Checker
from scripts.trials.crash_load import Api, Load
from scripts.trials.crash_processes import BROKEN, END_S, SETTINGS, Crew, forkserver, say_to
from scripts.trials.promises import check
from storage.backends.sqlite.backup import back_up
from storage.backends.sqlite.folder import DataFolder
from storage.backends.sqlite.restoring import restore

BEGUN = 0.3
"""How often one is begun where none runs."""


class Backups:
    """Backups of one data folder into one other, brought up to date each time; `done` of them ended well."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log
        self._target = folder / "backup"
        self._process: Any = None
        self._begun: set[str] = set()
        self._needed: set[str] = set()
        self.done = 0

    def go_on(self, load: Load, dice: random.Random) -> None:
        """Look after the one that runs, or begin another now and then. Raises Broken when one failed."""
        self.look()
        if self._process is None and dice.random() < BEGUN:
            self._begun = {mutation for writes in load.acknowledged for mutation, _ in writes}
            # Those that are killed may have replaced the one before; what that one had is in both.
            work = (self._folder / "data", self._target, str(self._log))
            self._process = forkserver.Process(target=_back_up, args=work, daemon=True)
            self._process.start()

    def kill(self) -> None:
        """Kill the one that runs. The one before it is still whole then."""
        if self._process is not None:
            self._process.kill()
            self._process.join(END_S)
            self._process = None

    def close(self) -> None:
        """Leave none running."""
        self.kill()

    def look(self) -> None:
        """Notice that one ended well. Raises Broken when one ended otherwise."""
        if self._process is not None and self._process.exitcode is not None:
            code, self._process = self._process.exitcode, None
            check(code == 0, f"a backup works while others are killed; it ended with {code}")
            self.done, self._needed = self.done + 1, self._begun

    def check(self, load: Load) -> None:
        """What was backed up last can be restored, and has what was acknowledged before it was begun. Raises Broken."""
        if self._process is not None:
            self._process.join(END_S * 3)
            self.look()
        if not self.done:
            return
        acknowledged = {mutation: write for writes in load.acknowledged for mutation, write in writes}
        restored = self._folder / "restored"
        restore(self._target, restored / "data")
        with Crew(restored / "data", self._log, settings=SETTINGS) as crew:
            crew.start()
            Checker(Api(crew.line)).prefix(acknowledged, needed=self._needed)
            crew.stop()
        shutil.rmtree(restored)


def _back_up(data: Path, target: Path, log: str) -> None:
    say_to(log)
    if BROKEN:
        preloaded.preload(BROKEN)
    manifest = back_up(DataFolder(data), target, program="trial")
    sys.exit(1 if manifest.left_out else 0)
