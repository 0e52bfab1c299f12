"""Where results go: the program's own stdout, while whatever other code prints goes to stderr.

So `--json` stays JSON, whatever a data callable or a model prints. Messages on stderr are lost without harm
when nobody reads them any more: a run goes on.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TextIO

import typer

from sparsify.errors import SparsifyError


class OutputError(SparsifyError):
    """Results cannot be written to stdout."""


@dataclass
class _Output:
    """The stream of results while a command runs; whether something was written to it."""

    stream: TextIO | None = None
    is_separate: bool = False
    has_results: bool = False


_output = _Output()


def find_stream() -> TextIO | None:
    """The stream of results; None where the caller closed it."""
    return _output.stream if _output.is_separate else sys.stdout


def has_results() -> bool:
    """Whether the last command wrote something on stdout."""
    return _output.has_results


def forget_results() -> None:
    """Begin a command: what an earlier one of this process wrote does not count."""
    _output.has_results = False


def write_result(text: str, *, nl: bool = True) -> None:
    """Write to stdout. Raises OutputError where that is full, BrokenPipeError where its reader is done."""
    stream = find_stream()
    _output.has_results = True
    if stream is None:
        return
    with explain_full_disk(stream):
        typer.echo(text, file=stream, nl=nl)


@contextmanager
def explain_full_disk(stream: TextIO) -> Iterator[None]:
    """Turn errors of writing to stdout into an OutputError, except that its reader is done."""
    try:
        yield
    except BrokenPipeError:
        _drop(stream)
        raise
    except OSError as error:
        _drop(stream)
        raise OutputError(f"cannot write the results to stdout: {error.strerror or error}") from error


def write_message(text: str, *, nl: bool = True) -> None:
    """Write to stderr, or nowhere where its reader is gone."""
    if sys.stderr is None:
        return
    try:
        typer.echo(text, err=True, nl=nl)
    except OSError:
        _drop(sys.stderr)


class Messages(io.TextIOBase):
    """stderr while a command runs. What cannot be written any more is lost, and no print of anybody fails."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding if self._stream is not None else "utf-8"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # its reader is gone; it is closed
                _drop(self._stream)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                _drop(self._stream)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()


def show_usage(show: Callable[[], None]) -> None:
    """Let typer print its message on stderr, or nowhere where its reader is gone."""
    if sys.stderr is None:
        return
    try:
        show()
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Lead a stream that cannot be written to nowhere: what it still holds would fail again at the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def separate_output() -> Iterator[None]:
    """Keep stdout for results while the block runs; print() and programs that are started go to stderr."""
    if _output.is_separate:
        yield
        return
    stream, put_back = _take_stdout()
    _output.stream, _output.is_separate, _output.has_results = stream, True, False
    try:
        messages = Messages(sys.stderr)
        with redirect_stdout(messages), redirect_stderr(messages):
            yield
    finally:
        _output.stream, _output.is_separate = None, False
        put_back()


def _take_stdout() -> tuple[TextIO | None, Callable[[], None]]:
    """The stream of results, and what makes it stdout again.

    Where sys.stdout is that of the process, its file descriptor becomes stderr's, for programs that user code
    starts.
    """
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper) or stdout is not sys.__stdout__:
        return stdout, lambda: None
    try:
        stdout.flush()
        place = stdout.fileno()
        own = os.dup(place)
        os.dup2(2, place)
    except (OSError, ValueError):  # one of them is closed
        return stdout, lambda: None
    stream = open(own, "w", encoding=stdout.encoding, errors=stdout.errors)  # noqa: PTH123, SIM115

    def put_back() -> None:
        with suppress(OSError):
            stdout.flush()
        with explain_full_disk(stream):
            stream.flush()
        os.dup2(own, place)
        stream.close()

    return stream, put_back
