"""Addresses of stores, where runs are kept outside of the machine: s3://bucket/dir, gs://bucket/dir, or a directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from distrl.errors import UserError, did_you_mean, shown

OPTIONS = {"s3": ("endpoint_override", "region", "scheme"), "gs": ("endpoint_override", "scheme"), "file": ()}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in the environment or in .env)",
    "gs": "the file that GOOGLE_APPLICATION_CREDENTIALS names",
}


@dataclass(frozen=True)
class Store:
    """A directory in a store. Holds no credentials: those come from the environment."""

    scheme: str  # 's3', 'gs' or 'file'
    path: str  # bucket/dir, or an absolute path
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, address: str) -> Store:
        """Raises `UserError` for what is no address, or one with credentials, which would end up in files."""
        if "://" not in address:
            return cls("file", os.path.abspath(os.path.expanduser(address)))
        parts = urlsplit(address)
        scheme, netloc = parts.scheme, parts.netloc.rpartition("@")[2]
        told = f"{scheme}://{netloc}{parts.path}"
        if scheme not in OPTIONS:
            raise UserError(f"storage {shown(told)} must begin with s3:// or gs://, or be a directory.")
        options = tuple(parse_qsl(parts.query))
        unknown = next((name for name, _ in options if name not in OPTIONS[scheme]), None)
        if scheme == "file":
            if netloc or unknown:
                raise UserError(f"storage {shown(told)} must have the form file:///DIR, or be a directory.")
            return cls("file", os.path.abspath(unquote(parts.path)))
        if "@" in parts.netloc or (unknown and ("key" in unknown or "token" in unknown or "secret" in unknown)):
            raise UserError(
                f"storage holds credentials for {shown(told)}, and a config is written to files. Put them into "
                f"{CREDENTIALS[scheme]}."
            )
        if unknown:
            near = did_you_mean(unknown, OPTIONS[scheme])
            raise UserError(
                f"storage {shown(told)} has the unknown option {shown(unknown)}.{near} Known are {', '.join(OPTIONS[scheme])}."
            )
        if not netloc:
            raise UserError(f"storage {shown(told)} names no bucket. Give it as {scheme}://BUCKET/DIR.")
        return cls(scheme, f"{netloc}/{parts.path.strip('/')}".rstrip("/"), options)

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{self.path}{query}"

    def __truediv__(self, name: str) -> Store:
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    @property
    def parent(self) -> Store:
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def is_address(path: str | Path) -> bool:
    """Whether it is meant for a store rather than for this machine's files."""
    return "://" in str(path)
