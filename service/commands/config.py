"""The settings as text: the table of `headrace config show`, and the page CONFIGURATION.md."""

from __future__ import annotations

from storage.configuration import LIMIT, Resolved, Setting, all_settings, shown, spelled
from storage.limits import PROFILES

INTRODUCTION = """\
# Configuration

Every setting can be given as a flag (`--seal-bytes 65536`), as an environment variable
(`HEADRACE_SEAL_BYTES=65536`) or in a TOML file (`seal_bytes = 65536`). A flag wins over a variable, a
variable over the file, the file over the default. The file is the one that `--config` or `HEADRACE_CONFIG`
names, else `headrace.toml` in the working folder. Unknown names and impossible values are refused at start.
`headrace config show` prints every value in force and where it came from.

Names end in their unit: `_ms` is milliseconds, `_bytes` is bytes. This page is written by `headrace config
markdown`.

## Settings

| setting | default | meaning |
|---|---|---|
"""
LIMITS = """
## Limits

`profile` picks a column; each limit can be changed on top of it. `headrace dev` starts from `cloudflare`, so
that what passes locally passes live; everything else starts from `relaxed`.

| setting | cloudflare | relaxed | meaning |
|---|---|---|---|
"""


def table(resolved: Resolved) -> str:
    """Every setting, its value and its origin in columns. Secrets are masked."""
    rows = [(item.name, shown(resolved, item.name), resolved.origins[item.name]) for item in all_settings()]
    rows.insert(0, ("SETTING", "VALUE", "FROM"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}\n" for name, value, origin in rows)


def markdown() -> str:
    """The page CONFIGURATION.md, from the settings themselves; a test holds the two together."""
    own = [item for item in all_settings() if not item.name.startswith(LIMIT)]
    limits = [item for item in all_settings() if item.name.startswith(LIMIT)]
    rows = "".join(f"| `{item.name}` | `{_default(item)}` | {item.description} |\n" for item in own)
    return INTRODUCTION + rows + LIMITS + "".join(_limit_row(item) for item in limits)


def _limit_row(item: Setting) -> str:
    columns = [getattr(PROFILES[profile], item.name.removeprefix(LIMIT)) for profile in ("cloudflare", "relaxed")]
    values = " | ".join(f"`{spelled(value)}`" for value in columns)
    return f"| `{item.name}` | {values} | {item.description} |\n"


def _default(setting: Setting) -> str:
    return '""' if setting.default == "" else spelled(setting.default)
