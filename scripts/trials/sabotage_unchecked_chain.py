"""A build that is broken on purpose: the worker applies whatever it finds in the log."""

from __future__ import annotations

import worker.apply

worker.apply.verify = lambda *_: None
