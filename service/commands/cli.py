"""The `headrace` command line: what each command takes, and the help that teaches it.

Every setting is a flag of every command that has settings; the help shows the few that a newcomer needs and
says where the rest are. Commands are imported when they run, so that `--help` and `--version` are instant.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.failure import EXIT_USAGE, CommandFailed
from service.commands.transfer_arguments import add_export, add_import
from service.version import VERSION
from storage.configuration import ConfigurationInvalid, Resolved, all_settings, resolve

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace, _SubParsersAction

    Commands = _SubParsersAction[ArgumentParser]

SETTING = "setting:"
"""Before the name of a setting among the values that argparse finds, to tell them from other options."""
METAVARS = {
    "data": "DIR",
    "host": "ADDRESS",
    "port": "PORT",
    "processes": "N",
    "token": "TOKEN",
    "profile": "PROFILE",
}
SERVING = ("host", "port", "data", "processes", "token", "insecure", "profile", "create_indexes")
LOGGING = ("log_format", "log_level")
DEV_PRESETS = {"host": "127.0.0.1", "profile": "cloudflare", "binding_creates_indexes": "true"}

OVERVIEW = f"""\
Headrace {VERSION}, a self-hosted vector index service: a drop-in for Cloudflare Vectorize v2.

  headrace dev                        try it: this machine only, no token, the limits of the live service
  headrace demo                       see a search over real words, from start to end
  headrace up --data /srv/headrace    run it: service and worker, supervised
"""
EXAMPLES = """\
examples:
  headrace dev --port 9000 --create-indexes "docs:768:cosine,notes:@cf/baai/bge-base-en-v1.5"
  HEADRACE_TOKEN=... headrace up --host 0.0.0.0 --processes 4
  headrace config show

`headrace COMMAND --help` says more about one command.
"""
MORE_SETTINGS = """\
Every setting is a flag (`seal_bytes` is --seal-bytes), an environment variable (HEADRACE_SEAL_BYTES) and a
key of the TOML file; flags win over variables, variables over the file. `headrace config show` lists them all.
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. What a person can fix is one sentence and no trace."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    try:
        return int(given.run(given))
    except CommandFailed as failure:
        sys.stderr.write(f"headrace: {failure}\n")
        return failure.exit_code
    except ConfigurationInvalid as error:
        sys.stderr.write(f"headrace: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `headrace sample | head`: the reader has what it wants. Python must not complain when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="headrace",
        description=OVERVIEW,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"headrace {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_running(commands)
    _add_demo(commands)
    _add_sample(commands)
    _add_migrate(commands)
    _add_token(commands)
    _add_audit(commands)
    _add_config(commands)
    _add_backup(commands)
    _add_transfer(commands)
    return parser


def settle(given: Namespace, presets: Mapping[str, str] | None = None) -> Resolved:
    """The settings of one call of the command line."""
    named = vars(given)
    flags = {key.removeprefix(SETTING): value for key, value in named.items() if key.startswith(SETTING)}
    return resolve(flags=flags, environ=os.environ, folder=Path.cwd(), config=named.get("config"), presets=presets)


def _add_running(commands: Commands) -> None:
    up = _command(
        commands,
        "up",
        "run service and worker on this machine",
        "Runs the service processes and the worker, restarts what dies, and stops cleanly on SIGTERM and "
        "Ctrl-C. Listens on 127.0.0.1:8787 unless told otherwise; other addresses need a token.",
        'headrace up --data /srv/headrace --create-indexes "docs:768:cosine"',
    )
    _add_settings(up, shown=SERVING + LOGGING)
    up.set_defaults(run=_up)
    serve = _command(
        commands,
        "serve",
        "run the service only",
        "Accepts writes and answers queries; somebody must run `headrace work` on the same data. Listens on "
        "127.0.0.1:8787 unless told otherwise; other addresses need a token.",
        "headrace serve --processes 4 --data /srv/headrace",
    )
    _add_settings(serve, shown=SERVING + LOGGING)
    serve.set_defaults(run=_serve)
    work = _command(
        commands,
        "work",
        "run the worker only",
        "Applies mutations, builds and merges segments. Several workers on one data folder share the work.",
        "headrace work --data /srv/headrace",
    )
    _add_settings(work, shown=("data", *LOGGING))
    work.set_defaults(run=_work)
    dev = _command(
        commands,
        "dev",
        "run everything for local development",
        "As `up`, on this machine only, without a token, with the limits of the live service (--limits "
        "relaxed lifts them). Prints the environment variables for wrangler and the SDKs, and a first request.",
        'headrace dev --create-indexes "docs:768:cosine,notes:@cf/baai/bge-base-en-v1.5"',
    )
    _add_settings(dev, shown=SERVING + LOGGING, presets=DEV_PRESETS)
    dev.set_defaults(run=_dev)


def _add_demo(commands: Commands) -> None:
    demo = _command(
        commands,
        "demo",
        "load real word vectors and search them",
        "Creates an index of 5,000 English words over the REST API, waits until they are searchable, and "
        'asks for the neighbours of "ocean": by id, with filters, in a namespace. Uses the server at --url; when '
        "nothing listens there and none was named, it runs its own on a free port with temporary data.",
        "headrace demo --url http://127.0.0.1:8787 --keep",
    )
    demo.add_argument("--url", default="", help="the server (default: http://127.0.0.1:8787, else its own)")
    demo.add_argument("--account", default="local", help="the account to make the index in (default: local)")
    demo.add_argument("--index", default="words", help="the name of the index to make (default: words)")
    demo.add_argument("--token", default=None, help="the token of the server (default: HEADRACE_TOKEN)")
    demo.add_argument("--keep", action="store_true", help="leave the index on the server at the end")
    demo.set_defaults(run=_demo)


def _add_sample(commands: Commands) -> None:
    sample = _command(
        commands,
        "sample",
        "print the sample words as NDJSON",
        "Writes the 5,000 words of the demo, one vector a line, in the form that insert and upsert take: 100 "
        "dimensions; metadata length, letter and rank; namespace everyday (ranks 1 to 1,000) or wider.",
        "headrace sample > words.ndjson",
    )
    sample.set_defaults(run=_sample)


def _add_migrate(commands: Commands) -> None:
    migrate = _command(
        commands,
        "migrate",
        "bring the databases to this version",
        "Migrates the catalogue and the databases of every index now, instead of when each is first opened.",
        "headrace migrate --data /srv/headrace",
    )
    _add_settings(migrate, shown=("data",))
    migrate.set_defaults(run=_migrate)


def _add_token(commands: Commands) -> None:
    token = _command(
        commands,
        "token",
        "make, list, rotate and revoke API tokens",
        "Tokens of a data folder, for a running service too: a change acts within half a second. Once the first is "
        "made, every request needs one.",
        "headrace token create ci --grant write:local/docs-* --expires 90d",
    )
    parts = token.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = _command(
        parts,
        "create",
        "make a token and print it, once",
        "Prints the token, alone, on standard output. A grant is SCOPE:ACCOUNT or SCOPE:ACCOUNT/INDEXES: the scope is "
        "read, write (and read), admin (and create or delete indexes), or metrics; * stands for every account; INDEXES "
        "may have * and ?.",
        "TOKEN=$(headrace token create search --grant read:local --grant write:local/tmp-* --expires 90d)",
    )
    create.add_argument("name", metavar="NAME", help="what it is for; shown in lists")
    create.add_argument(
        "--grant", action="append", default=[], required=True, metavar="GRANT", help="what it may do; more than once"
    )
    create.add_argument("--expires", default="never", metavar="WHEN", help="90d, 12h, 2031-12-31 or never (default)")
    create.set_defaults(run=_token_create)
    listed = _command(parts, "list", "show every token", "Shows every token, not its secret.", "headrace token list")
    listed.add_argument("--json", action="store_true", help="as JSON")
    listed.set_defaults(run=_token_list)
    rotate = _command(
        parts,
        "rotate",
        "give a token a new secret and print it, once",
        "Keeps id and grants. The old secret works for as long as --overlap says.",
        "headrace token rotate q3k9x0d2m7ab --overlap 1h",
    )
    rotate.add_argument("id", metavar="ID", help="as `headrace token list` shows it")
    rotate.add_argument("--overlap", default="0", metavar="TIME", help="1h, 10m, ... (default: 0)")
    rotate.add_argument("--expires", default="", metavar="WHEN", help="90d, 2031-12-31 or never (default: as before)")
    rotate.set_defaults(run=_token_rotate)
    revoke = _command(parts, "revoke", "end tokens for good", "Ends tokens.", "headrace token revoke q3k9x0d2m7ab")
    revoke.add_argument("ids", nargs="+", metavar="ID", help="as `headrace token list` shows it")
    revoke.set_defaults(run=_token_revoke)
    for part in (create, listed, rotate, revoke):
        _add_settings(part, shown=("data",))


def _add_audit(commands: Commands) -> None:
    audit = _command(
        commands,
        "audit",
        "check that an audit file is as it was written",
        "Names every line of an audit file that was changed, taken out or put in, and exits with 1 when there is any.",
        "headrace audit /var/log/headrace/audit.jsonl",
    )
    audit.add_argument("file", type=Path, metavar="FILE", help="what `audit_file` named when it was written")
    audit.set_defaults(run=_audit)


def _add_config(commands: Commands) -> None:
    config = _command(commands, "config", "show the settings", "Shows the settings.", "headrace config show")
    parts = config.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = _command(
        parts,
        "show",
        "every setting, its value, and where it came from",
        "Prints every setting, its value, and whether it came from a flag, a HEADRACE_* variable, the TOML "
        "file or the default. Secrets are masked.",
        "HEADRACE_PORT=9000 headrace config show",
    )
    _add_settings(show, shown=("data", "profile"))
    show.set_defaults(run=_config_show)
    page = _command(
        parts,
        "markdown",
        "the page CONFIGURATION.md",
        "Prints the reference of all settings as Markdown.",
        "headrace config markdown > CONFIGURATION.md",
    )
    page.set_defaults(run=_config_markdown)


def _add_backup(commands: Commands) -> None:
    backup = _command(
        commands,
        "backup",
        "copy everything while it is in use",
        "Copies the data folder of a running or stopped Headrace into the folder TARGET, or into one archive when "
        "TARGET ends in .tar. Every file has its sha256 in the manifest. Into a folder that holds a backup, only what "
        "changed is copied. A damaged index is left out, named, and makes the exit code 1.",
        "headrace backup /backups/headrace --data /srv/headrace",
    )
    backup.add_argument("target", type=Path, metavar="TARGET", help="a folder, or a name that ends in .tar")
    _add_settings(backup, shown=("data",))
    backup.set_defaults(run=_backup)
    restore = _command(
        commands,
        "restore",
        "make a data folder from a backup",
        "Makes DATA_DIR, which must not exist or be empty, from a backup folder or archive. What is not exactly what "
        "was backed up is refused. Graphs are not in a backup: exact scans answer until they are built again.",
        "headrace restore /backups/headrace.tar /srv/headrace",
    )
    restore.add_argument("backup", type=Path, metavar="BACKUP", help="a backup folder or archive")
    restore.add_argument("target", type=Path, metavar="DATA_DIR", help="the data folder to make")
    restore.add_argument(
        "--log-from", type=Path, metavar="SOURCE", help="a data folder or newer backup with the mutations since"
    )
    restore.add_argument("--until", default="", metavar="MUTATION_ID", help="the last mutation wanted, of any index")
    restore.set_defaults(run=_restore)
    doctor = _command(
        commands,
        "doctor",
        "check everything, and salvage what is damaged",
        "Reads every file of the data folder, of a running or stopped Headrace, and says what is not what was written, "
        "and what that means. Exits with 1 when anything is. With --salvage, on a stopped one, damaged indexes are "
        "made again from what can be verified, and what is lost is named; the damaged folders go to quarantine.",
        "headrace doctor --data /srv/headrace",
    )
    doctor.add_argument("--salvage", action="store_true", help="make damaged indexes whole again")
    _add_settings(doctor, shown=("data",))
    doctor.set_defaults(run=_doctor)


def _add_transfer(commands: Commands) -> None:
    brought = _command(
        commands,
        "import",
        "bring vectors here from Vectorize or a file",
        "Lists and reads an index of the live service, or of another Headrace, and upserts it into one of a running "
        "server; or upserts a file. Makes the index if there is none, and at the end compares the counts. After a "
        "break the same command goes on. The token of the other side is CLOUDFLARE_API_TOKEN.",
        "headrace import vectorize://0123456789abcdef0123456789abcdef/docs --account local --index docs",
    )
    add_import(brought)
    taken = _command(
        commands,
        "export",
        "take vectors from here to Vectorize or a file",
        "The way back of `import`: an index of a running server into one of the live service, of another Headrace, or "
        "into a file with a vector a line.",
        "headrace export --index docs docs.ndjson",
    )
    add_export(taken)


def _command(commands: Commands, name: str, summary: str, description: str, example: str) -> ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 100),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_settings(parser: ArgumentParser, *, shown: Sequence[str], presets: Mapping[str, str] | None = None) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a TOML file of settings (default: headrace.toml if there is one)",
    )
    for setting in all_settings():
        spellings = ("--limits", setting.flag) if setting.name == "profile" else (setting.flag,)
        value = (presets or {}).get(setting.name, setting.default)
        default = f" (default: {value})" if value not in ("", False) else ""
        # The values are read by storage.configuration, which knows their bounds: here they stay text.
        parser.add_argument(
            *spellings,
            dest=SETTING + setting.name,
            default=argparse.SUPPRESS,
            metavar=METAVARS.get(setting.name, "VALUE"),
            nargs="?" if setting.type is bool else None,
            const="true" if setting.type is bool else None,
            help=setting.description + default if setting.name in shown else argparse.SUPPRESS,
        )
    parser.epilog = f"{parser.epilog}\n\n{MORE_SETTINGS}"


def _up(given: Namespace) -> int:
    from service.commands.up import Crew, run_crew

    return run_crew(settle(given).settings, Crew())


def _serve(given: Namespace) -> int:
    from service.commands.up import Crew, run_crew

    return run_crew(settle(given).settings, Crew(works=False))


def _work(given: Namespace) -> int:
    from service.commands.up import Crew, run_crew

    return run_crew(settle(given).settings, Crew(serves=False))


def _dev(given: Namespace) -> int:
    from service.commands.up import Crew, run_crew

    return run_crew(settle(given, DEV_PRESETS).settings, Crew(), teach=True)


def _demo(given: Namespace) -> int:
    from service.commands.demo import Demo, run_demo

    token = given.token if given.token is not None else os.environ.get("HEADRACE_TOKEN", "")
    return run_demo(
        Demo(url=given.url, account=given.account, index=given.index, token=token, keep=given.keep),
    )


def _sample(_: Namespace) -> int:
    from service.sample.words import ndjson, sample_words

    for line in ndjson(sample_words()):
        sys.stdout.buffer.write(line)
    sys.stdout.flush()
    return 0


def _migrate(given: Namespace) -> int:
    from service.commands.migrate import migrate_all

    return migrate_all(settle(given).settings)


def _token_create(given: Namespace) -> int:
    from service.commands.token import create

    return create(settle(given).settings, name=given.name, grants=given.grant, expires=given.expires)


def _token_list(given: Namespace) -> int:
    from service.commands.token import show_all

    return show_all(settle(given).settings, as_json=given.json)


def _token_rotate(given: Namespace) -> int:
    from service.commands.token import rotate

    return rotate(settle(given).settings, id=given.id, overlap=given.overlap, expires=given.expires)


def _token_revoke(given: Namespace) -> int:
    from service.commands.token import revoke

    return revoke(settle(given).settings, ids=given.ids)


def _audit(given: Namespace) -> int:
    from service.commands.audit import check_audit

    return check_audit(given.file)


def _config_show(given: Namespace) -> int:
    from service.commands.config import table

    sys.stdout.write(table(settle(given)))
    return 0


def _config_markdown(_: Namespace) -> int:
    from service.commands.config import markdown

    sys.stdout.write(markdown())
    return 0


def _backup(given: Namespace) -> int:
    from service.commands.backup import run_backup

    return run_backup(settle(given).settings, given.target)


def _restore(given: Namespace) -> int:
    from service.commands.backup import run_restore

    return run_restore(given.backup, given.target, until=given.until, log_from=given.log_from)


def _doctor(given: Namespace) -> int:
    from service.commands.doctor import run_doctor

    return run_doctor(settle(given).settings, mend=given.salvage)
