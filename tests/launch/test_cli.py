"""Commands that only look: they leave nothing behind, and say how to mend what is missing."""

import os

import pytest

from launch.cli import main

SET = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"}
"""All that opening a store sets in the environment."""


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_doctor_names_each_thing_and_leaves_nothing(capsys, tmp_path):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for what in ("Python", "torch", "ray", "mlflow", "backend", "GPUs", "network", "store", "memory"):
        assert what in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_the_mend_of_a_store_that_does_not_answer(capsys):
    environment = dict(os.environ)
    code, out, _ = run(capsys, "doctor", "--uri", "nonsense://store")
    assert code == 1
    assert "mend" in out
    assert "does not answer" in out
    assert {key for key in os.environ if os.environ[key] != environment.get(key)} <= SET


@pytest.mark.parametrize("command", ["report", "ui"])
def test_without_a_store_it_is_told_how_to_make_one(capsys, tmp_path, command):
    code, _, err = run(capsys, command)
    assert code == 2
    assert "gradrank run CONFIG" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "mlpp"], "did you mean 'mlp'"),
        (["--set", "model.widht=3"], "did you mean 'width'"),
        (["--workers", "3"], "multiple of 3"),
    ],
)
def test_bound_refuses_mistakes(capsys, arguments, word):
    code, _, err = run(capsys, "bound", *arguments)
    assert code == 2
    assert word in err
    assert "Traceback" not in err
