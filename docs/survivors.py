"""Why a mutant that the judge accepts is no wrong solution: {(exercise, the line that is changed): the reason}."""

REASONS: dict[tuple[str, str], str] = {}
