"""What the tests of pages and trees share."""

import pytest
from jaxtyping import config


@pytest.fixture
def as_users_call():
    """Annotations are not checked, as in a user's process: bad arguments come as far as the code's own checks."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
