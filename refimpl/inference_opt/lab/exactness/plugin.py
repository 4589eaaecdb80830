"""For pytest: the fixture `assert_exact`, which judges a sampler and fails with the verdict where it is biased.

    def test_my_sampler(assert_exact):
        assert_exact(my_sampler, gamma=2)

It comes with the package, by an entry point. (It stands beside the kit, not in it, and imports the kit when a test asks
for it: pytest loads every plugin at its start, in projects that never ask, too.)
"""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_exact() -> Callable[..., Any]:
    """`assert_exact(sampler, **settings)`: as `kit.judge`, or `kit.judge_text` if `whole_text`; returns the verdict."""
    from inference_opt.lab.exactness.kit import judge, judge_text

    def check(sampler: Callable[..., Any], *, whole_text: bool = False, **settings: Any) -> Any:
        __tracebackhide__ = True
        verdict = (judge_text if whole_text else judge)(sampler, **settings)
        if not verdict.exact:
            pytest.fail(str(verdict), pytrace=False)
        return verdict

    return check
