"""The toy base, trained once a session, and the CLI in this process."""

import shutil

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from tests.jobs.toy import make_base, make_texts, write_project


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory):
    """A tiny base that answers by colour when told `label`, and `unknown` otherwise."""
    return make_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="session")
def luthier():
    """Runs a verb in this process: luthier("run", "-c", path) -> result with exit_code, output and exception."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def untouched(tmp_path_factory, toy_base, luthier):
    """A whole run that ships, for tests that only copy it: (project file, its result)."""
    path = write_project(tmp_path_factory.mktemp("untouched"), toy_base, make_texts(500, seed=7))
    return path, luthier("run", "-c", path)


@pytest.fixture(scope="session")
def shipped(untouched, tmp_path_factory):
    """The same, for tests that go on from it."""
    path, result = untouched
    folder = tmp_path_factory.mktemp("ship") / path.parent.name  # the card tells the name
    shutil.copytree(path.parent, folder)
    return folder / path.name, result
