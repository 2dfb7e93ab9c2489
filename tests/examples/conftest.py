"""The CLI in this process."""

import pytest
from typer.testing import CliRunner

from luthier.cli import app


@pytest.fixture(scope="session")
def luthier():
    """Runs a verb: luthier("prepare", "-c", path) -> result with exit_code, output and exception."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])
