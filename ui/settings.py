"""How a server is set up, and what is refused."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stream.journal import DEFAULT_SIZE, LEAST_SIZE

BACKLOG = 512  # connections that wait to be accepted


class SettingsError(Exception):
    """A server can't be set up so; the message is one line that says what to do."""


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    """What clients must show; None lets everybody on this machine in."""
    max_sessions: int = 8
    grace_seconds: float = 30.0
    """How long a session waits for a client whose connection broke."""
    threshold: float | None = None
    """For sessions that give none; None is the model's own."""
    origins: tuple[str, ...] = ()
    """Origins of pages, beside the server's own, that may connect."""
    folders: tuple[Path, ...] = ()
    """Folders whose clips may be named in requests."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What the server itself can watch for its clients, by name."""
    journal: Path | None = None
    """Folder in which every session keeps a journal."""
    journal_size: int = DEFAULT_SIZE
    """The most bytes that a session's journal takes."""
    journal_total: int = 10 * DEFAULT_SIZE
    """The most that all of them take, those of earlier sessions among them."""
    certificate: Path | None = None
    key: Path | None = None

    def check(self) -> None:
        """Raises SettingsError."""
        if not self.is_local and not self.token:
            raise SettingsError(
                f"on {self.host} everybody on the network could connect; give a token "
                "(--token or VIDEOLLM_TOKEN), or bind to 127.0.0.1"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise SettingsError("the token has to be of printable ASCII characters; choose another")
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("TLS needs both a certificate and its key; give --certificate and --key")
        for path in (self.certificate, self.key):
            if path is not None and not path.is_file():
                raise SettingsError(f"{path} is not there; check the path")
        for folder in self.folders:
            if not folder.is_dir():
                raise SettingsError(f"{folder} is no folder; check the path")
        if self.journal is not None:
            self._check_journal(self.journal)

    def _check_journal(self, folder: Path) -> None:
        if self.journal_size < LEAST_SIZE:
            raise SettingsError(f"a journal needs at least {LEAST_SIZE} bytes; give --journal-size more")
        if self.journal_total < (needed := self.max_sessions * self.journal_size):
            raise SettingsError(
                f"{self.max_sessions} journals of {self.journal_size} bytes take {needed}, and all together "
                f"may take {self.journal_total}; lower --journal-size or raise --journal-total"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(f"{folder} can't hold journals ({reason}); name another folder") from error

    def address(self, port: int) -> str:
        """Where clients connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ws' if self.certificate is None else 'wss'}://{host}:{port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def listen(settings: Settings) -> socket.socket:
    """Take the address, before a model is loaded for it. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(
            f"port {settings.port} on {settings.host} can't be had ({reason}); choose another with --port"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, is this machine and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
