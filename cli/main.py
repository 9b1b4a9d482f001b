"""The command group: finds a verb's file on first use, turns errors into one line on stderr."""

from __future__ import annotations

import _thread
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from compress.errors import CompressError, GateError, InputError, nearest, on_the_command_line
from compress.escaping import terminal

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Verb → the file that defines it. Imported on first use, so that `compress --help` stays quick.
COMMANDS = {
    "benchmark": "cli.benchmark",
    "compare": "cli.compare",
    "doctor": "cli.doctor",
    "evaluate": "cli.evaluate",
    "export": "cli.export",
    "finetune": "cli.finetune",
    "prune": "cli.prune",
    "init": "cli.init",
    "quantize": "cli.quantize",
    "quickstart": "cli.quickstart",
    "report": "cli.report",
    "run": "cli.run",
    "search": "cli.search",
    "sensitivity": "cli.sensitivity",
    "train": "cli.train",
}

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
INTERNAL_ERROR = 1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
OUT_OF_MEMORY = "out of memory; use a smaller batch or fewer threads, or raise the limit of the process"
LIBRARIES_BYTES = 700_000_000  # torch 600 MB, onnx and ONNX Runtime 100 MB, as VmPeak says with one thread
NEARLY_ALL = 0.9  # of the address space allowed: the request that failed is not in the peak
MEMORY_WORDS = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",
    "failed to allocate",
    "can't start new thread",
    "failed to map segment",
)


class Verbs(click.Group):
    """A click group whose commands live in one file each and whose errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        if not {"-h", "--help", "--help-all"} & set(ctx.args):
            _check_address_space()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise click.Abort(*stopped.args) from None  # click would write an empty line first

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"no command {name!r}; {nearest(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def main(self, *given: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        click_main: Any = super().main
        if not standalone_mode:
            return click_main(*given, standalone_mode=False, **extra)
        named = given[0] if given else extra.get("args")
        arguments = list(sys.argv[1:] if named is None else named)
        sys.exit(_guarded(lambda: click_main(*given, standalone_mode=False, **extra), arguments))


def _guarded(run: Any, arguments: list[str]) -> int:
    """Run a command; return the exit code, with at most one line on stderr for a failure."""
    with on_the_command_line():
        return _answered(run, arguments)


def _answered(run: Any, arguments: list[str]) -> int:
    _prepare_streams()
    try:
        os.getcwd()
    except OSError:
        return _print_line("the working folder is gone; change to one that exists", CompressError.exit_code)
    try:
        with _ended_like_ctrl_c():
            code = run()
            if sys.stdout is not None:
                sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt) as stopped:
        return _print_line("; ".join(["stopped", *map(str, stopped.args)]), INTERRUPTED, label="")
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        click.echo(error.format_message(), err=True, color=error.ctx.color if error.ctx else None)
        return error.exit_code
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _print_line(error.format_message() + hint, error.exit_code)
    except click.ClickException as error:
        return _print_line(error.format_message(), 2)
    except GateError as error:
        return _print_line(str(error), error.exit_code, label="not met")
    except CompressError as error:
        if _wants_traceback(arguments):
            traceback.print_exc()
        also = f"; {OUT_OF_MEMORY}" if _reached_its_limit() else ""
        return _print_line(f"{error}{also}", error.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `compress … | head`: the reader has left, which is no error of ours
            _drop_stdout()
            return 0
        if error.errno in FULL:
            _drop_stdout()  # what is left in its buffer would fail again as the interpreter ends
            return _print_line(f"cannot write {error.filename or 'the output'}: {error.strerror}; free some space", 2)
        if error.errno == errno.ENAMETOOLONG:  # of whatever the user named: a file, a folder, a spec read as a path
            name = str(error.filename)
            return _print_line(f"{name[:60]!r}… ({len(name)} characters) is longer than any file's name; check it", 2)
        return _unexpected(error, arguments)
    except SystemExit as error:
        if "PacifyFlush" in type(sys.stdout).__name__:  # what click puts there when the reader has left
            _drop_stdout()
            return 0
        return _print_line(
            f"your own code ended the program (SystemExit: {error.code}); let it return", CompressError.exit_code
        )
    except MemoryError:
        return _print_line(OUT_OF_MEMORY, CompressError.exit_code)
    except BaseException as error:
        return _unexpected(error, arguments)


def _prepare_streams() -> None:
    """Any name can be printed, and no file that is opened takes the number of a stream that the caller closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """While a command runs, SIGTERM and SIGHUP unwind it as Ctrl-C does: temporary files go, locks too.

    Python drops an exception that is raised in a finalizer, such as that of a temporary folder; a request to stop that
    falls there is made again.
    """
    before = {}
    hook = sys.unraisablehook
    again: list[threading.Timer] = []  # a moment later: now it would fall into the same finalizer

    def report(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        # By SIGTERM where that unwinds: SIGINT is ignored in the background of a shell, and then would be lost here.
        number = signal.SIGTERM if signal.SIGTERM in before else signal.SIGINT
        again.append(threading.Timer(0.01, _thread.interrupt_main, [number]))
        again[-1].daemon = True
        again[-1].start()

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` stays in force
                before[number] = signal.signal(number, _interrupt)
        sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in again:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _is_out_of_memory(error: BaseException) -> bool:
    """Libraries in C++ say it each in its own words, or not at all: then the limit that was reached tells."""
    if _reached_its_limit():
        return True
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or any(words in str(seen).lower() for words in MEMORY_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _address_space() -> int | None:
    """The bytes of address space that this process may have; None without a limit."""
    if resource is None:
        return None
    most: int = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else most


def _check_address_space() -> None:
    """Refuse a limit in which the libraries do not even load: there they end the process, each in its own way.

    Raises:
        InputError: names the limit.
    """
    most = _address_space()
    if most is not None and most < LIBRARIES_BYTES:
        raise InputError(
            f"out of memory: this process may have {most / 1e6:.0f} MB of address space (ulimit -v) and the libraries "
            f"alone take {LIBRARIES_BYTES / 1e6:.0f}; raise the limit"
        )


def _reached_its_limit() -> bool:
    """Whether this process had, at its largest, all but a little of the address space that it may have (Linux)."""
    most = _address_space()
    if most is None:
        return False
    try:
        status = Path("/proc/self/status").read_text()
    except (OSError, MemoryError):
        return False
    peak = next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmPeak:")), 0)
    return peak > NEARLY_ALL * most


def _unexpected(error: BaseException, arguments: list[str]) -> int:
    if _is_out_of_memory(error) and not _wants_traceback(arguments):
        return _print_line(OUT_OF_MEMORY, CompressError.exit_code)
    place = _in_users_code(error)
    code = CompressError.exit_code if place else INTERNAL_ERROR
    if _wants_traceback(arguments):
        traceback.print_exc()
        return code
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    whose = f"your own code raised this, {place}" if place else "this is a bug in compress"
    return _print_line(f"{type(error).__name__}: {text}; {whose}: add --verbose for the traceback", code)


def _in_users_code(error: BaseException) -> str:
    """Where the user's own code (a forward, a loss, a data set) let an exception pass; nothing where it is ours.

    Of the frames that are no library's the innermost decides.
    """
    ours, place = Path(__file__).parents[1], ""
    libraries = Path(os.__file__).parent
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ours / "cli") or path.is_relative_to(ours / "compress"):
            place = ""
            continue
        library = path.is_relative_to(libraries) or {"site-packages", "dist-packages"} & set(path.parts)
        if path.suffix == ".py" and not library:
            place = f"{path.name} line {line} in {frame.f_code.co_name}"
    return place


def _wants_traceback(arguments: list[str]) -> bool:
    return bool({"--verbose", "-v"} & set(arguments)) or bool(os.environ.get("COMPRESS_TRACEBACK"))


def _print_line(message: str, code: int, *, label: str = "error") -> int:
    with contextlib.suppress(OSError):  # stderr may be full or closed as well
        click.echo(f"compress: {label}{': ' if label else ''}{terminal(' '.join(message.split()))}", err=True)
    return code


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="`compress VERB --help` ends with examples. Exit codes: 0 done, 1 a fault of compress, 2 bad input, 3 a limit was not met, 130 Ctrl-C.",
)
@click.version_option(package_name="torch-compress", prog_name="compress")
def main() -> None:
    """Make a trained PyTorch model small and fast, and measure the file that ships.

    MODEL is a torchvision name, timm:NAME, hf:FOLDER, package.module:factory, file.py:factory, a .pt2 or an .onnx file.
    """
