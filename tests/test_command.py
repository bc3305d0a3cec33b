import errno
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recon.command import run_command
from recon.errors import InterruptedRunError, UserError
from recon.settings import Settings

CPU = ["--GPUs", ""]


def raising(error: BaseException) -> Any:
    def job(_settings: Settings, _asked: frozenset[str]) -> None:
        raise error

    return job


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says: one line, and no traceback."""
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1
    return said.removeprefix("error: ").removesuffix("\n")


# Success


def test_a_job_is_given_the_settings_and_what_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[Any] = []
    config = {"num_epochs": 7}
    code = run_command(config, ["--seed", "3", *CPU], lambda *args: given.extend(args))
    assert code == 0
    assert (given[0].num_epochs, given[0].seed) == (7, 3)
    assert given[1] == {"seed", "GPUs"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_job_may_return_an_exit_code(returned: int | None, code: int) -> None:
    assert run_command({}, CPU, lambda *_: returned) == code


def test_the_gpus_are_chosen_before_the_job_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    seen: list[str] = []
    run_command({}, CPU, lambda *_: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    assert seen == [""]


def test_the_arguments_are_those_of_the_process_where_none_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["Training_MSE.py", "--seed", "3", *CPU])
    given: list[Any] = []
    run_command({}, None, lambda *args: given.extend(args))
    assert given[0].seed == 3


def test_messages_go_to_stdout_once_each_and_bare(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run_command({}, CPU, lambda *_: logging.getLogger("recon").info("Epoch 1/10"))
    assert capsys.readouterr().out == "Epoch 1/10\n" * 2


# Errors of the user


def test_an_error_of_the_user_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command({}, CPU, raising(UserError("the folder\nis empty"))) == 2
    assert refused(capsys) == "the folder is empty"


def test_a_wrong_setting_ends_the_run_before_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    began: list[Any] = []
    assert run_command({}, ["--num_epoch", "3"], lambda *args: began.extend(args)) == 2
    assert "did you mean 'num_epochs'" in refused(capsys)
    assert began == []


def test_help_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command({}, ["--help"], raising(UserError("the job began")))
    assert caught.value.code == 0
    assert "--num_epochs" in capsys.readouterr().out


# Signals


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_a_signal_ended_exits_as_a_shell_expects(
    capsys: pytest.CaptureFixture[str], signum: int, code: int
) -> None:
    assert run_command({}, CPU, raising(InterruptedRunError(signum))) == code
    assert refused(capsys) == f"ended by {signal.Signals(signum).name}"


def test_ctrl_c_before_the_run_watches_for_it_exits_with_130(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command({}, CPU, raising(KeyboardInterrupt())) == 130
    assert refused(capsys) == "ended by Ctrl-C"


# Errors of the machine and of the program


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EFBIG]
)
def test_a_machine_in_the_way_is_one_line_that_names_the_file(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    error = OSError(number, os.strerror(number), "out/model.pth")
    assert run_command({}, CPU, raising(error)) == 2
    assert refused(capsys) == f"{os.strerror(number)}: out/model.pth"


def test_a_full_disk_without_a_file_name_is_one_line_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command({}, CPU, raising(OSError(errno.ENOSPC, "No space left on device"))) == 2
    assert refused(capsys) == "No space left on device: while writing"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        RuntimeError("wrong"),
        FileNotFoundError(errno.ENOENT, "wrong", "a"),
        OSError("wrong, and without a number"),
        SystemExit(3),
    ],
)
def test_any_other_exception_keeps_its_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run_command({}, CPU, raising(error))
    assert caught.value is error


def test_sigterm_before_or_after_training_ends_with_143_and_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def job(_settings: object, _asked: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    assert run_command({}, [], job) == 143
    assert capsys.readouterr().err == "error: ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_missing_package_is_one_line_also_where_a_worker_process_misses_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = "a.nii: needs the package nibabel: pip install nibabel"
    for message in (
        line,
        f"Caught ModuleNotFoundError.\nTraceback:\nModuleNotFoundError: {line}\n",
    ):
        assert run_command({}, CPU, raising(ModuleNotFoundError(message))) == 2
        assert refused(capsys) == line


def test_a_reader_that_leaves_silences_a_run_and_does_not_end_it(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib, sys; from recon.command import run_command\n"
        "def job(*_):\n"
        "    for number in range(20_000): logging.getLogger('recon').info('line %d', number)\n"
        f"    pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
        "sys.exit(run_command({}, ['--GPUs', ''], job))"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} | head -n 1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("line 0\n", "")
    assert (tmp_path / "done").is_file()


def test_a_name_that_is_no_text_reaches_the_console_escaped() -> None:
    program = (
        "import logging, sys; from recon.command import run_command\n"
        "run_command({}, ['--GPUs', ''], "
        "lambda *_: logging.getLogger('recon').info('caf\\udce9.png'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        check=True,
    )
    assert (ended.stdout, ended.stderr) == (b"caf\\udce9.png\n", b"")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_run_without_standard_streams_goes_on(closed: str, tmp_path: Path) -> None:
    """And no file that it opens takes their numbers."""
    program = (
        "import logging, sys; from tqdm import tqdm; from recon.command import run_command\n"
        "def job(*_):\n"
        "    logging.getLogger('recon').info('a line')\n"
        "    sys.stdout.write('out'), sys.stderr.write('err')\n"
        "    list(tqdm([1], disable=None))\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file: file.write(str(file.fileno()))\n"
        "    return 7\n"
        "sys.exit(run_command({}, ['--GPUs', ''], job))"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {closed}"
    assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 7
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_ends_in_one_line_and_the_run_goes_on() -> None:
    program = (
        "import logging, sys; from recon.command import run_command\n"
        "def job(*_):\n"
        "    for number in range(100): logging.getLogger('recon').info('line %d', number)\n"
        "    return 7\n"
        "sys.exit(run_command({}, ['--GPUs', ''], job))"
    )
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 7
    assert ended.stderr == "warning: the log ends here: No space left on device: stdout\n"
