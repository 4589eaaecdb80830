"""All exercises by their names."""

from inference_opt.explain.exercises.chapters import (
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
    chapter_09,
)
from inference_opt.explain.exercises.exercise import Exercise

EXERCISES: dict[str, Exercise] = {
    each.id: each
    for chapter in (
        chapter_00,
        chapter_01,
        chapter_02,
        chapter_03,
        chapter_04,
        chapter_05,
        chapter_06,
        chapter_07,
        chapter_08,
        chapter_09,
    )
    for each in chapter.EXERCISES
}
