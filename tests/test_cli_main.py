"""The command line as a shell sees it: exit codes, one line on stderr, nothing but the result on stdout."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import cli.main
from cli.main import COMMANDS, main
from cli.options import Size, plain_value
from compress.errors import GateError, InputError

ROOT = Path(__file__).resolve().parent.parent


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def failing(monkeypatch):
    """Replace what a verb does by raising `error`, in a file of ours unless another is named."""

    def use(error, file=ROOT / "cli" / "doctor.py"):
        @click.command()
        @click.option("--verbose", is_flag=True)
        def command(verbose):
            exec(compile("raise error", str(file), "exec"), {"error": error})

        monkeypatch.setattr(cli.main.Verbs, "get_command", lambda self, ctx, name: command)

    return use


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no such thing\nat all"), 2, "compress: error: no such thing at all"),
        (GateError("int8 fails --max-drop"), 3, "compress: not met: int8 fails --max-drop"),
        (KeyboardInterrupt(), 130, "compress: stopped"),
        (
            ValueError("oops"),
            1,
            "compress: error: ValueError: oops; this is a bug in compress: add --verbose for the traceback",
        ),
    ],
    ids=["input", "gate", "interrupt", "bug"],
)
def test_errors_are_one_line_with_their_code(failing, error, code, line):
    failing(error)
    result = invoke("doctor")
    assert (result.exit_code, result.stdout) == (code, "")
    assert [text for text in result.stderr.splitlines() if text] == [line]


def test_verbose_shows_where_a_bug_is(failing):
    failing(ValueError("oops"))
    result = invoke("doctor", "--verbose")
    assert "Traceback" in result.stderr and result.exit_code == 1


def test_what_the_users_own_code_raises_is_no_bug_of_ours(failing):
    failing(KeyError("oops"), "/home/me/net.py")
    result = invoke("doctor")
    assert result.exit_code == 2 and result.stdout == ""
    line = "compress: error: KeyError: 'oops'; your own code raised this, net.py line 1 in <module>: add --verbose for the traceback"
    assert result.stderr.splitlines() == [line]
    result = invoke("doctor", "--verbose")
    assert result.exit_code == 2 and "Traceback" in result.stderr


def test_an_error_of_any_kind_at_the_limit_of_memory_is_no_bug(failing, monkeypatch):
    failing(SystemError("error return without exception set"))
    assert invoke("doctor").exit_code == 1
    monkeypatch.setattr(cli.main, "_address_space", lambda: 1 << 30)
    monkeypatch.setattr(cli.main, "NEARLY_ALL", 0)
    result = invoke("doctor")
    assert result.exit_code == 2 and result.stderr == f"compress: error: {cli.main.OUT_OF_MEMORY}\n"
    failing(InputError("ONNX Runtime refuses 'x'"))
    assert invoke("doctor").stderr == f"compress: error: ONNX Runtime refuses 'x'; {cli.main.OUT_OF_MEMORY}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_not_lost_in_a_finalizer(monkeypatch, number):
    reached = []

    class Held:
        def __del__(self):
            os.kill(os.getpid(), number)
            for _ in range(1000):  # Python acts on the signal here, and drops what that raises
                pass

    @click.command()
    def command():
        held = Held()
        del held
        reached.append(1)
        time.sleep(5)
        reached.append(2)

    monkeypatch.setattr(cli.main.Verbs, "get_command", lambda self, ctx, name: command)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's worker may ignore it
    try:
        result = invoke("doctor")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, reached) == (130, [1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space")
def test_less_memory_than_the_libraries_take_is_said_at_once():
    code = "import resource as r; r.setrlimit(r.RLIMIT_AS, (600_000_000,) * 2); from cli.main import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, "evaluate", "x"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2 and ended.stderr.startswith(
        "compress: error: out of memory: this process may have 600 MB"
    )
    assert ended.stderr.count("\n") == 1


def test_unknown_verb_and_option_name_the_nearest():
    result = invoke("quantise")
    assert result.exit_code == 2 and "did you mean 'quantize'?" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    result = invoke("export", "resnet18", "--input-shap", "1", "-o", "x.onnx")
    assert result.exit_code == 2 and "--input-shape" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input-shape", "2,x"], "'2,x' is not a shape; write whole numbers such as 2,3,224,224"),
        (["--input-shape", "0,3"], "'0,3' has a dimension below 1"),
        (["--mean", "a"], "'a' is not a list of numbers"),
        (["--model-arg", "depth"], "'depth' is not key=value"),
        (["--max-size", "5 cows"], "'5 cows' is not a size; write it as 5MB"),
    ],
)
def test_malformed_options(arguments, message):
    result = invoke("compare", "resnet18", *arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_help_fits_one_screen_and_names_every_verb():
    text = invoke("--help").stdout
    assert len(text.splitlines()) <= 30
    assert all(re.search(rf"^  {verb} ", text, re.M) for verb in COMMANDS)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_ends_with_two_examples(verb):
    text = invoke(verb, "--help").stdout
    examples = text[text.index("Examples:") :].splitlines()[1:]
    found = [line.strip() for line in examples if line.strip()]
    assert len(found) == 2 and all(line.startswith(f"compress {verb}") for line in found)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_speaks_json(verb):
    assert re.search(r"^  --json ", invoke(verb, "--help").stdout, re.M)


def test_help_is_quick_to_import():
    code = "import cli.main, cli.options, cli.quantize, sys; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"


def test_doctor_names_versions_target_and_json():
    text = invoke("doctor").stdout
    assert re.search(r"^target +\S+: ", text, re.M) and "onnxruntime" in text and "CPU" in text
    data = json.loads(invoke("doctor", "--json").stdout)
    assert data["problems"] == [] and data["target"] and data["environment"]["features"] is not None


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""  # no traceback, no "Broken pipe"
    assert process.wait() in (0, 1)


@pytest.mark.slow
def test_control_c_leaves_nothing_and_returns_130(tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "quickstart", "-o", str(out), "--epochs", "50", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        # A suite that runs in the background ignores Ctrl-C, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            for _ in range(600):  # until it has begun to fill the folder beside
                if any(tmp_path.iterdir()):
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
            os.kill(process.pid, signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    # Python ends by the signal itself where Ctrl-C met an exec() (a dataclass being made); a shell shows 130 for both.
    assert process.returncode in (130, -signal.SIGINT) and stdout == ""
    assert stderr.splitlines()[-1] == "compress: stopped" and "Traceback" not in stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("None", None), ("relu", "relu"), ("1e-3", 1e-3)]
    + [
        ("(8,16)", (8, 16)),
        ("[1, None]", [1, None]),
        ("'3'", "3"),
        ("TRUE", True),
        ("3x3", "3x3"),
        ("{[]: 1}", "{[]: 1}"),
    ],
)
def test_model_arguments_become_plain_values(text, value):
    assert plain_value(text) == value and type(plain_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "value"), [("5MB", 5_000_000), ("1.5 MiB", 1_572_864), ("300kB", 300_000), ("17", 17)]
)
def test_sizes_in_any_unit(text, value):
    assert Size().convert(text, None, None) == value


def test_shell_completion_lists_the_verbs():
    environment = {**os.environ, "_COMPRESS_COMPLETE": "bash_complete", "COMP_WORDS": "compress qu", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'compress'; from cli.main import main; main(prog_name='compress')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert {line.split(",")[1] for line in shown.stdout.split()} == {v for v in COMMANDS if v.startswith("qu")}
