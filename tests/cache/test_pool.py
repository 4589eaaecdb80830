"""The page pool: a page is handed out once at a time, and an error changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.cache.pool import PagePool


@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_a_page_has_one_owner_at_a_time(num_pages, page_size, data):
    pool, mine = PagePool(num_pages, page_size), []
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            count = data.draw(st.integers(-1, num_pages + 1))
            if 0 <= count <= num_pages - len(mine):
                mine += pool.allocate(count)
            else:
                with pytest.raises(ValueError, match="cannot allocate"):
                    pool.allocate(count)
        elif mine:
            back = data.draw(st.lists(st.sampled_from(mine), unique=True))
            pool.release(iter(back))
            mine = [page for page in mine if page not in back]
        assert pool.free == num_pages - len(mine)
        assert len(set(mine)) == len(mine)
        assert [page for page in range(num_pages) if not pool.is_free(page)] == sorted(mine)


@given(st.integers(1, 7), st.integers(0, 50))
def test_pages_for_is_the_least_that_holds_the_tokens(page_size, tokens):
    pages = PagePool(1, page_size).pages_for(tokens)
    assert pages * page_size >= tokens > (pages - 1) * page_size


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("pages", [[0, 0], [2], [0, 3], [-1], [0, 1, 1], [True], [0.0], ["0"], [[0]]])
def test_what_cannot_be_released_changes_nothing(pages):
    pool = PagePool(3, 1)
    taken = pool.allocate(2)
    with pytest.raises(ValueError, match=r"release|a page must be"):
        pool.release(pages)
    assert pool.free == 1
    pool.release(taken)
    assert sorted(pool.allocate(3)) == [0, 1, 2]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 4), (True, 1), (2.0, 1), (2, "1"), (None, 1)])
def test_a_pool_has_pages_and_pages_have_tokens(sizes):
    with pytest.raises(ValueError, match=r"at least one page|must be an integer"):
        PagePool(*sizes)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("count", [-1, 4, True, 1.0, "1", None])
def test_what_cannot_be_allocated_changes_nothing(count):
    pool = PagePool(3, 1)
    with pytest.raises(ValueError, match=r"cannot allocate|count must be"):
        pool.allocate(count)
    assert pool.free == 3
