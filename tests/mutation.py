"""A known mistake put back into the source of one function: the scenario that guards against it must fail.

So a scenario is known to see what it is there to see. Where the source has changed, the test fails with the function as
it now stands: the same mistake is then to be written into that.
"""

import inspect
import sys
import textwrap

import pytest


def put_back(monkeypatch, owner, name, right, wrong):
    """Replace `right` by `wrong` in the source of `owner.name`, wherever the package has that function.

    owner: a class or a module. A property stays one.
    """
    place = f"{owner.__name__}.{name}"
    found = inspect.getattr_static(owner, name, None)
    if found is None:
        pytest.fail(f"there is no {place}: put the mistake, {wrong!r}, into what does its work now", pytrace=False)
    function = inspect.unwrap(found.fget if isinstance(found, property) else found)
    source = textwrap.dedent(inspect.getsource(function))
    if right not in source:
        pytest.fail(
            f"{place} does not have\n\n    {right}\n\nPut the same mistake, {wrong!r}, into it as it is:\n\n{source}",
            pytrace=False,
        )
    # Outside its class, a function knows no super().
    mutant, scope = source.replace(right, wrong).replace("super()", f"super({owner.__name__}, self)"), {}
    exec(mutant, function.__globals__, scope)
    monkeypatch.setattr(owner, name, scope[name])
    for module in [each for path, each in sys.modules.items() if path.startswith("inference_opt")]:
        if vars(module).get(name) is found:  # imported by name
            monkeypatch.setattr(module, name, scope[name])


def assert_seen(monkeypatch, scenario, owner, name, right, wrong):
    """The scenario must fail with the mistake put back."""
    put_back(monkeypatch, owner, name, right, wrong)
    with pytest.raises((AssertionError, ValueError, RuntimeError, LookupError)):
        scenario()


def sentence(scenario):
    """A function's name as the sentence that it is."""
    return scenario.__name__.replace("_", " ").replace(" s ", "'s ")


def each_scenario(bugs):
    """Parametrise a test by the scenarios of a table of bugs, (scenario, owner, name, right, wrong) each."""
    return pytest.mark.parametrize("scenario", dict.fromkeys(bug[0] for bug in bugs), ids=sentence)


def each_bug(bugs):
    """Parametrise a test by the bugs themselves."""
    ids = [f"{sentence(scenario)}, not with {wrong!r} in {name}" for scenario, _, name, _, wrong in bugs]
    return pytest.mark.parametrize("bug", bugs, ids=ids)
