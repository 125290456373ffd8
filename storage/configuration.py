"""Where settings come from: flags, then `HEADRACE_*` variables, then a TOML file, then defaults.

Every value remembers its origin, so that `headrace config show` can answer "why is it this?". A name nobody
knows and a value that cannot be are refused, and the refusal says what would work: a misspelt setting that is
silently ignored is found at the worst moment. Nothing here reads the environment by itself; it is handed in.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import re
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import storage.limits
import storage.settings
from storage.limits import PROFILES, Limits
from storage.settings import Settings
from storage.wanted import wanted_indexes

PREFIX = "HEADRACE_"
CONFIG_FILE = "headrace.toml"
CONFIG_VARIABLE = "HEADRACE_CONFIG"
CHILD_VARIABLE = "HEADRACE_CHILD"
"""What a supervisor hands to its children (`storage.process`); never a setting."""
CLIENT_VARIABLES = frozenset({"HEADRACE_URL", "HEADRACE_ACCOUNT", "HEADRACE_WAIT"})
"""What our clients read; a shell that has them must still be able to start a server."""
NOT_SETTINGS = CLIENT_VARIABLES | {CONFIG_VARIABLE, CHILD_VARIABLE}
LIMIT = "limit_"

CHOICES: dict[str, tuple[str, ...]] = {
    "log_format": ("auto", "json", "console"),
    "log_level": ("debug", "info", "warning", "error"),
    "profile": tuple(PROFILES),
}
_MOST = 2**63 - 1
RANGES: dict[str, tuple[float, float]] = {
    # With none of these nothing would be served, and of their neighbours 0 says that there is no bound.
    "body_timeout_ms": (1, _MOST),
    "head_timeout_ms": (1, _MOST),
    "connections_max": (1, _MOST),
    "requests_in_flight_max": (1, _MOST),
    "port": (0, 65_535),
    "processes": (1, 256),
    "recall": (0.5, 1),
    "dead_share_max": (0.01, 1),
    "merge_ratio": (2, 1_000),
    "segments_max": (1, 1_000),
    "open_indexes_max": (1, 100_000),
    "apply_mutations_max": (1, 1_000_000),
    "sweep_ms": (1, 3_600_000),
}
"""The least and the greatest value; a number that is not here may be anything from zero."""
SECRETS = frozenset({"token"})

# A Kubernetes service called `headrace` puts HEADRACE_PORT=tcp://..., HEADRACE_SERVICE_HOST and more like
# them into every pod. They are no settings of ours, and refusing them would keep us from starting there.
_SERVICE_LINK = re.compile(r"HEADRACE_(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP)(_.+)?)$")


class ConfigurationInvalid(Exception):
    """A setting that is not known or cannot have that value; the message says what would work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its name, type, default and the sentence that explains it."""

    name: str
    type: type
    default: object
    description: str

    @property
    def flag(self) -> str:
        """The spelling on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The spelling in the environment."""
        return PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The settings, and for every one of them where its value came from."""

    settings: Settings
    origins: Mapping[str, str]

    def value(self, name: str) -> object:
        """The value in force of one setting."""
        if name.startswith(LIMIT):
            return getattr(self.settings.limits, name.removeprefix(LIMIT))
        return getattr(self.settings, name)


def all_settings() -> tuple[Setting, ...]:
    """Every setting in the order of the source; limits last, as `limit_<field>`."""
    own = tuple(item for item in _described(Settings, storage.settings, prefix="") if item.name != "limits")
    return own + _described(Limits, storage.limits, prefix=LIMIT)


def resolve(
    *,
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    folder: Path,
    config: Path | None = None,
    presets: Mapping[str, str] | None = None,
) -> Resolved:
    """Settle every setting. Raises ConfigurationInvalid.

    `flags` holds only what was given on the command line. `config` is the file of `--config`; without it
    HEADRACE_CONFIG names one, and without that `headrace.toml` in `folder` is read if it is there. `presets`
    are defaults of the command itself (`headrace dev` starts from other limits than `headrace up`).
    """
    known = {setting.name: setting for setting in all_settings()}
    found: dict[str, tuple[object, str]] = {}
    for name, text in (presets or {}).items():
        found[name] = (_parse(known[name], text, "default of the command"), "default of the command")
    found |= _from_file(_config_path(config, environ, folder), known)
    found |= _from_environ(environ, known)
    for name, text in flags.items():
        found[name] = (_parse(known[name], text, known[name].flag), f"flag {known[name].flag}")
    return _assemble(known, found)


def to_json(settings: Settings) -> str:
    """The settings as text for a child process; `from_json` gives them back."""
    return json.dumps(dataclasses.asdict(settings) | {"data": str(settings.data)})


def from_json(text: str) -> Settings:
    """The settings that `to_json` wrote. It comes from our own parent, so it is not checked again."""
    fields = json.loads(text)
    return Settings(**fields | {"data": Path(fields["data"]), "limits": Limits(**fields["limits"])})


def shown(resolved: Resolved, name: str) -> str:
    """A value for human eyes: secrets are masked, empty text is visible."""
    value = resolved.value(name)
    if name in SECRETS and value:
        return "********"
    return '""' if value == "" else spelled(value)


def spelled(value: object) -> str:
    """A value as it would be written in the environment."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _described(owner: type, module: object, *, prefix: str) -> tuple[Setting, ...]:
    """The fields of a dataclass with the sentence below each, which Python itself forgets."""
    sentences = _sentences(owner)
    types = typing.get_type_hints(owner, vars(module))
    return tuple(
        Setting(
            name=prefix + field.name,
            type=types[field.name],
            default=getattr(PROFILES["relaxed"], field.name) if prefix else field.default,
            description=sentences.get(field.name) or _from_name(field.name),
        )
        for field in dataclasses.fields(owner)
    )


def _sentences(owner: type) -> dict[str, str]:
    body = typing.cast("ast.ClassDef", ast.parse(inspect.getsource(owner)).body[0]).body
    found = {}
    for node, below in itertools.pairwise(body):
        match node, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found


def _from_name(name: str) -> str:
    """A limit whose name says it all: `dimensions_max` is "The most dimensions."."""
    words = name.split("_")
    bound = {"max": "The most", "min": "The fewest", "default": "The default of"}[words[-1]]
    return f"{bound} {' '.join(words[:-1])}."


def _config_path(config: Path | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    if config is not None:
        return _existing(config, "--config")
    if named := environ.get(CONFIG_VARIABLE):
        return _existing(Path(named), CONFIG_VARIABLE)
    usual = folder / CONFIG_FILE
    return usual if usual.is_file() else None


def _existing(path: Path, named_by: str) -> Path:
    if not path.is_file():
        raise ConfigurationInvalid(f"{named_by} names {path}, which is no file; name a TOML file or leave it out")
    return path


def _from_file(path: Path | None, known: Mapping[str, Setting]) -> dict[str, tuple[object, str]]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationInvalid(f"{path} cannot be read as TOML: {error}") from error
    found = {}
    for name, value in table.items():
        if name not in known:
            raise ConfigurationInvalid(f"{path} sets `{name}`, which is no setting; {_hint(name, known)}")
        found[name] = (_parse(known[name], value, f"`{name}` in {path}"), f"file {path}")
    return found


def _from_environ(environ: Mapping[str, str], known: Mapping[str, Setting]) -> dict[str, tuple[object, str]]:
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        if _SERVICE_LINK.match(variable) or (variable == "HEADRACE_PORT" and text.startswith("tcp://")):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            raise ConfigurationInvalid(f"the environment has {variable}, which is no setting; {_hint(name, known)}")
        found[name] = (_parse(known[name], text, variable), f"variable {variable}")
    return found


def _hint(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if not close:
        return "`headrace config show` lists them all"
    setting = known[close[0]]
    return f"did you mean `{setting.name}` ({setting.variable} in the environment)?"


def _parse(setting: Setting, value: object, source: str) -> object:
    """A value of the setting's type and inside its bounds."""
    reader: Callable[[object], object] = {
        Path: _read_path, str: _read_text, int: _read_int, float: _read_float, bool: _read_bool
    }[setting.type]  # fmt: skip
    try:
        read = reader(value)
    except (ValueError, TypeError, OverflowError):
        shown_value = "the value given" if setting.name in SECRETS else repr(value)
        raise ConfigurationInvalid(f"{source} is {shown_value}; {_wanted(setting)}") from None
    if setting.name in CHOICES and read not in CHOICES[setting.name]:
        raise ConfigurationInvalid(f"{source} is {value!r}; {_wanted(setting)}")
    if isinstance(read, (int, float)) and not isinstance(read, bool):
        low, high = _bounds(setting.name)
        if not low <= read <= high:
            raise ConfigurationInvalid(f"{source} is {value!r}; {_wanted(setting)}")
    if setting.name == "create_indexes":
        _check_wanted(str(read), source)
    return read


def _check_wanted(text: str, source: str) -> None:
    try:
        wanted_indexes(text)
    except ValueError as error:
        raise ConfigurationInvalid(f"{source}: {error}") from error


def _bounds(name: str) -> tuple[float, float]:
    return RANGES.get(name, (0, _MOST))


def _wanted(setting: Setting) -> str:
    if setting.name in CHOICES:
        return f"it can be {', '.join(CHOICES[setting.name])}"
    if setting.type is bool:
        return "it can be true or false"
    if setting.type in (int, float):
        low, high = _bounds(setting.name)
        kind = "a whole number" if setting.type is int else "a number"
        return f"it must be {kind} from {low:g}" + (f" to {high:g}" if high < 2**62 else "")
    return "it must be text that is not empty" if setting.type is Path else "it must be text"


def _read_path(value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise TypeError
    return Path(value).expanduser()


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError
    return int(value)


def _read_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    read = float(value)
    if math.isnan(read):
        raise ValueError
    return read


def _read_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError
    return words[value.lower()]


def _assemble(known: Mapping[str, Setting], found: Mapping[str, tuple[object, str]]) -> Resolved:
    profile = typing.cast("str", found.get("profile", (Settings().profile, ""))[0])
    values = {name: value for name, (value, _) in found.items()}
    limits = dataclasses.replace(
        PROFILES[profile],
        **{name.removeprefix(LIMIT): value for name, value in values.items() if name.startswith(LIMIT)},  # type: ignore[arg-type]
    )
    own = {name: value for name, value in values.items() if not name.startswith(LIMIT)}
    origins = {}
    for name in known:
        default = f"profile {profile}" if name.startswith(LIMIT) else "default"
        origins[name] = found[name][1] if name in found else default
    return Resolved(settings=Settings(**own, limits=limits), origins=origins)  # type: ignore[arg-type]
