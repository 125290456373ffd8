"""Every setting of Headrace, with its default.

A field is one setting: `seal_bytes` is the flag `--seal-bytes` where a command has it, the variable
`HEADRACE_SEAL_BYTES`, and `seal_bytes = ...` in the TOML file. `storage.configuration` reads those and remembers
where each value came from. Every field of `storage.limits.Limits` is a setting as well, as `limit_<field>`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from storage.limits import RELAXED, Limits

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process was told. Durations and sizes carry their unit in the name."""

    data: Path = Path("headrace-data")
    """The data folder: databases and segments."""
    host: str = "127.0.0.1"
    """The address to listen on. One that is not loopback needs a token or `insecure`."""
    port: int = 8787
    """The port to listen on; 0 takes a free one."""
    processes: int = 1
    """How many service processes share the port."""
    token: str = ""
    """A token that may do everything. Without one, and before `headrace token create`, everybody may."""
    insecure: bool = False
    """Listen beyond loopback without a token."""
    tls_certificate: str = ""
    """The PEM file of the certificate and those that vouch for it; empty: plain HTTP. Read again on SIGHUP."""
    tls_key: str = ""
    """The PEM file of its key, without a password; empty: in the file of the certificate."""
    tls_client_ca: str = ""
    """The PEM file of authorities: only clients with a certificate of theirs may connect. Read again on SIGHUP."""
    audit_file: str = ""
    """The file for the audit of writes and administration; empty: the log. Opened again on SIGHUP."""
    create_indexes: str = ""
    """Indexes to make at start: `name:dimensions:metric` or `name:preset`, separated by commas."""
    binding_creates_indexes: bool = False
    """A Worker's first write to an index that does not exist makes it, with that vector's dimensions and cosine."""
    stop_with_input: bool = False
    """Stop when standard input ends: for a program that starts a server for itself and may be killed."""
    log_format: str = "auto"
    """`json`, `console`, or `auto`: console on a terminal, JSON elsewhere."""
    log_level: str = "info"
    """The least severe events that are logged: debug, info, warning or error."""

    profile: str = "relaxed"
    """The limits to start from: `cloudflare` or `relaxed`."""
    limits: Limits = field(default=RELAXED)
    """The profile with every `limit_*` setting applied."""

    recall: float = 0.98
    """The recall a query is planned for when it names none; 1 is exact."""
    writes_wait: bool = False
    """Writes answer when they can be found, as with `?wait=true`, unless they say `?wait=false`: for tests."""
    query_timeout_ms: int = 30_000
    """How long a query, get, list or count may take, once its body is there, before it is answered 504; 0: no bound."""
    wait_timeout_ms: int = 30_000
    """How long `?wait=true` and `wait_for` wait when the caller names no timeout."""
    wait_timeout_max_ms: int = 300_000
    """The longest a caller may wait."""
    caller_window_ms: int = 300_000
    """How long `/info` names a caller's own mutations to that caller."""
    body_bytes_in_flight_max: int = 512 * MIB
    """The bytes of request bodies one service process holds at a time."""
    body_bytes_per_second_min: int = 1024
    """A sender that is slower than this, after a grace of ten seconds, is given up; 0 for no bound."""
    body_timeout_ms: int = 600_000
    """How long the service waits for one body, all pauses together."""
    head_timeout_ms: int = 5_000
    """How long the head of a request may take: the first from the connection on, others from their first byte."""
    keepalive_timeout_ms: int = 75_000
    """How long a connection may be idle between requests; longer than the proxy in front keeps its own."""
    answer_bytes_per_second_min: int = 1024
    """A client that reads its answer more slowly than this is disconnected; 0 for no bound."""
    connections_max: int = 8_192
    """The connections of one service process; at most half the files it may have open."""
    connections_per_address_max: int = 0
    """The connections of one address to one service process; 0 for no bound. Behind a proxy all have its address."""
    requests_in_flight_max: int = 4_096
    """The requests one service process works on at a time, those that wait included."""
    requests_per_second_per_address_max: int = 0
    """The requests of one address to one service process; 0 for no bound. Behind a proxy all have its address."""
    requests_per_second_per_token_max: int = 0
    """The requests with one token to one service process; 0 for no bound."""
    failed_credentials_per_minute_max: int = 600
    """The wrong credentials one address may show one service process; 0 for no bound."""
    ready_lag_max_ms: int = 0
    """`/readyz` is unready when the worker is further behind than this; 0 never asks."""
    drain_timeout_ms: int = 25_000
    """How long a stopping service finishes requests that are under way."""

    queue_bytes_max: int = 1024 * MIB
    """The bytes of unapplied mutations one index may have."""
    queue_mutations_max: int = 100_000
    """The unapplied mutations one index may have."""
    reserve_bytes: int = 64 * MIB
    """The room that is kept on the disk for reads and deletes, should it be full; at most a 32nd of the disk."""
    lock_timeout_ms: int = 5_000
    """How long an append waits for the lock of a log."""
    open_indexes_max: int = 256
    """How many indexes one process keeps open."""
    cursor_ttl_ms: int = 3_600_000
    """How long a list cursor lives."""

    apply_mutations_max: int = 1_000
    """The mutations one apply transaction takes."""
    apply_bytes_max: int = 8 * MIB
    """The bytes of log bodies one apply transaction takes."""
    seal_bytes: int = 8 * MIB
    """The bytes of the tail, as they lie in the log and dead rows included, at which it is sealed."""
    seal_mutations: int = 2_000
    """The mutations of the tail at which it is sealed."""
    seal_idle_ms: int = 5_000
    """An index without writes for this long seals a tail of over 1 MiB."""
    tail_bytes_max: int = 64 * MIB
    """The bytes of the tail at which applying waits for a seal."""
    graph_rows_min: int = 4_000
    """Segments with fewer rows have no graph: an exact scan is faster."""
    merge_ratio: int = 8
    """Segments within this ratio of size are merged together."""
    segments_max: int = 4
    """The segments at rest above which the smallest are merged."""
    merge_idle_ms: int = 30_000
    """An index without writes for this long is merged to one segment."""
    dead_share_max: float = 0.2
    """A segment with a larger share of dead rows is rewritten."""
    builder_threads: int = 0
    """Threads of one graph build; 0 takes every core."""
    grace_ms: int = 60_000
    """How long what a publish replaced stays for readers of the older manifest."""
    sweep_ms: int = 5_000
    """How often a worker looks at every index, whether or not it was rung for."""
    pin_segments: bool = False
    """Copy segments into the memory of each process that opens them, instead of mapping their files."""
    scrub_interval_ms: int = 3_600_000
    """How often everything of an index is read again and compared with what was written; 0 never."""
    scrub_bytes_per_second: int = 64 * MIB
    """How fast a scrub reads; 0 as fast as it can."""
    log_retain_ms: int = 0
    """How long log bodies stay after they are sealed."""
    mutation_retain_ms: int = 7 * 24 * 3_600_000
    """How long the status of a mutation is remembered."""
