"""Shapes in signatures are checked while testing; hypothesis draws the same examples every time."""

import os

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("inference_opt", "beartype.beartype")

settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def smollm2_path():
    from inference_opt.model.weights import fetch

    return fetch("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    from inference_opt import load_model

    return load_model(smollm2_path)
