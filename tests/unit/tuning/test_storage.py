"""Passwords of storages stay out of files and messages."""

from pathlib import Path

import pytest

from sparsify.errors import RunError
from sparsify.tuning.storage import hide_password, open_storage

URLS = {
    "sqlite://me:se/cret@h/d.db": "sqlite://me@h/d.db",
    "postgresql://me:se/cret@host/studies": "postgresql://me@host/studies",
    "postgresql://me:secret@host:5432/studies": "postgresql://me@host:5432/studies",
    "postgresql://:secret@host/studies": "postgresql://host/studies",
    "postgresql://me:se%40cret@host/studies": "postgresql://me@host/studies",
    "postgresql://host/d?user=me&password=secret": "postgresql://host/d?user=me",
    "postgresql://host/d?sslpassword=secret&sslmode=require": "postgresql://host/d?sslmode=require",
    "mysql://me:secret@h/d?passwd=secret&charset=utf8": "mysql://me@h/d?charset=utf8",
    "mssql+pyodbc://?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Dsecret": "mssql+pyodbc://",
    "postgresql://me:a@b:secret@host/studies?x=secret": "postgresql://host/studies",  # SQLAlchemy refuses it
    "postgresql://me@host/studies": "postgresql://me@host/studies",
    "sqlite:////data/a b@c:d.db": "sqlite:////data/a b@c:d.db",
    "sqlite:///C:\\studies\\d.db": "sqlite:///C:\\studies\\d.db",
    "postgresql://host/d?passfile=/home/me/.pgpass": "postgresql://host/d?passfile=/home/me/.pgpass",
    "runs/journal.log": "runs/journal.log",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_without_its_passwords(url: str) -> None:
    assert hide_password(url) == URLS[url]


@pytest.mark.parametrize("url", [url for url in URLS if "cret" in url and "mssql" not in url])
def test_no_message_holds_a_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        open_storage(url.replace("@host", "@127.0.0.1:9").replace(":9:5432", ":9"), tmp_path)
    assert "cret" not in str(error.value) and str(error.value).startswith("the storage ")


def test_a_url_that_cannot_be_read_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        open_storage("postgresql://me:a@b:secret@host/studies", tmp_path)
    assert str(error.value) == (
        "the storage postgresql://host/studies is no URL of SQLAlchemy; "
        "write @, : and / of a password as %40, %3A and %2F"
    )
