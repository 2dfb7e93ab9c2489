"""Folders and loaded models of the matrix, made once a session."""

import pytest

from luthier.models.load import load_model
from tests.models.folders import MATRIX, make_folder


@pytest.fixture(scope="session")
def matrix_folder(tmp_path_factory):
    """name -> folder, made on first use."""
    root, made = tmp_path_factory.mktemp("matrix"), {}

    def folder(name):
        if name not in made:
            made[name] = make_folder(root / name, name)
        return made[name]

    return folder


@pytest.fixture(params=MATRIX)
def arch_folder(request, matrix_folder):
    """Each folder of the matrix."""
    return matrix_folder(request.param)


@pytest.fixture
def arch_model(arch_folder):
    """Each model of the matrix on luthier's own decoder, fresh."""
    model = load_model(arch_folder)
    assert model.note == ""
    return model
