"""Why a mutant that the judge accepts is no wrong solution: {exercise: {a part of the changed line: the reason}}."""

REASONS: dict[str, dict[str, str]] = {}


def reason(id: str, line: str) -> str:
    """Why a survivor is right. ValueError for one that nobody has looked at."""
    for part, why in REASONS.get(id, {}).items():
        if part in line:
            return why
    raise ValueError(f"a mutant of {id} is accepted, and docs/survivors.py does not say why it is right: {line}")
