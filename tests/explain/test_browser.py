"""Every scenario's HTML file in a real browser: keys, scrubbing, links, questions, looks for all, bad traces."""

import json
import re

import pytest

from inference_opt.explain.player.page import frame, inline, module
from inference_opt.explain.player.page import page as html_page
from inference_opt.explain.record import record
from inference_opt.explain.scenarios import SCENARIOS, play
from inference_opt.trace import emit
from tests.explain.browser import launched, light, opened, picture, where


@pytest.fixture(scope="module")
def browser():
    with launched() as it:
        yield it


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{scenario: (its HTML file, its trace)}, made when asked for."""
    folder, made = tmp_path_factory.mktemp("pages"), {}

    def get(name):
        if name not in made:
            trace = play(name)
            made[name] = folder / f"{name}.html", trace
            made[name][0].write_text(html_page(trace), encoding="utf-8")
        return made[name]

    return get


def step_on(page, times=1, key="ArrowRight"):
    """Press a key; answer whatever is asked."""
    for _ in range(times):
        page.keyboard.press(key)
        if key == "ArrowRight" and page.locator(".question button").count():
            page.keyboard.press("Enter")


COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}  # what differs in the dark


def serious(page, **options):
    """What the accessibility checker finds serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options |= {"resultTypes": ["violations"]}  # the thousands of nodes that pass need not be described
    found = axe.run(page, options=options).response["violations"]
    return [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("name", SCENARIOS)
def test_forward_and_back_show_the_same_pictures(browser, files, name):
    file, trace = files(name)
    n = min(len(trace) - 1, 25)
    with opened(browser, file) as page:
        assert where(page) == 1
        seen = [picture(page)]
        for i in range(n):
            step_on(page)
            assert where(page) == i + 2
            seen.append(picture(page))
            assert page.locator(".sentence").inner_text() == re.sub(r"\s+", " ", trace.steps[i + 1]["text"])
        for i in reversed(range(n)):
            step_on(page, key="ArrowLeft")
            assert picture(page) == seen[i]
        page.keyboard.press("End")
        assert where(page) == len(trace)
        page.keyboard.press("Home")
        assert picture(page) == seen[0]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_checker_of_accessibility_finds_nothing_serious_in_the_dark_and_in_the_light(browser, files, name):
    file, trace = files(name)
    with opened(browser, file, f"#step-{len(trace) // 2}", color_scheme="dark") as page:
        assert page.locator(".player.dark").count() == 1
        assert serious(page, **COLOURS) == []
        light(page)
        page.locator(".player.dark").wait_for(state="detached")  # it hears of it a moment later
        assert serious(page) == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_fits_a_telephone(browser, files, name):
    file, trace = files(name)
    with opened(browser, file, f"#step-{len(trace)}", viewport={"width": 400, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, "the page scrolls sideways"
        sizes = page.evaluate(
            """() => [...document.getElementById("player").shadowRoot.querySelectorAll("svg text")]
                .map((text) => text.getBoundingClientRect().height).filter(Boolean)"""
        )
        assert min(sizes) >= 11, "too small to read"


def test_keys_buttons_scrubbing_and_jumps(browser, files):
    file, trace = files("diverging-insert")
    with opened(browser, file) as page:
        page.locator("input[type=range]").evaluate("r => { r.value = 6; r.dispatchEvent(new Event('input')); }")
        assert where(page) == 7
        page.get_by_role("button", name="a step forward").click()
        page.get_by_role("button", name="a step back").click()
        assert where(page) == 7
        page.keyboard.press("k")
        page.keyboard.press("j")
        assert where(page) == 7
        page.get_by_label("jump to").select_option("radix.evict")
        assert where(page) == trace.events().index("radix.evict") + 1
        page.keyboard.press("Home")
        page.locator(".player").focus()
        page.keyboard.press("e")
        assert where(page) == [i for i, event in enumerate(trace.events()) if event == "radix.match"][1] + 1
        page.keyboard.press("E")
        assert where(page) == 1
        page.keyboard.press("?")
        assert page.locator("dialog").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        page.keyboard.press("t")
        assert page.locator(".player.dark").count() == 1
        page.keyboard.press("g")
        page.keyboard.press("ArrowRight")
        assert where(page) == 2


def test_it_is_paused_at_first_and_plays_at_the_chosen_speed_up_to_a_question(browser, files):
    file, trace = files("diverging-insert")
    question = next(i for i, s in enumerate(trace.steps) if "question" in s)
    with opened(browser, file) as page:
        page.wait_for_timeout(300)
        assert where(page) == 1
        page.get_by_label("speed").select_option("20")
        page.get_by_role("button", name="play").click()
        page.locator(".question button").first.wait_for()
        assert where(page) == question, "what is asked for is not shown yet"
        page.keyboard.press("Enter")
        assert where(page) == question + 1
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        assert where(page) == question + 1, "no question is asked twice"


def said(question):
    """The verdict and the reason that a player shows."""
    return question.locator(".verdict").inner_text(), question.locator(".why").inner_text()


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "pointer"])
def test_a_wrong_choice_is_told_why_and_may_be_mended(browser, files, keys):
    file, trace = files("rejection")
    asked = trace.steps[1]["question"]
    right, wrong = asked["right"], (asked["right"] + 1) % 3

    def choose(at):
        if keys:
            page.keyboard.press(str(at + 1))
        else:
            page.get_by_role("button", name=asked["choices"][at][0], exact=True).click()

    with opened(browser, file) as page:
        page.keyboard.press("ArrowRight")
        question = page.locator(".question")
        choose(wrong)
        assert where(page) == 1, "the question stays"
        assert said(question) == (f"Not so: {asked['choices'][wrong][0]}", asked["choices"][wrong][1])
        assert question.locator("button.no").inner_text() == asked["choices"][wrong][0], "it is marked"
        page.keyboard.press(" ")
        assert where(page) == 1
        assert serious(page) == []
        choose(right)
        assert where(page) == 2
        assert said(question) == (f"Right: {asked['choices'][right][0]}", asked["choices"][right][1])


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "pointer"])
def test_a_number_is_typed_and_a_wrong_one_is_told_why(browser, files, keys):
    file, trace = files("page-pool")
    at = next(i for i, step in enumerate(trace.steps) if "question" in step)
    asked = trace.steps[at]["question"]

    def enter(words):
        if keys:
            page.keyboard.type(words)
            page.keyboard.press("Enter")
        else:
            question.get_by_role("textbox").fill(words)
            question.get_by_role("button", name="check").click()

    with opened(browser, file, f"#step-{at}") as page:
        page.keyboard.press("ArrowRight")
        question = page.locator(".question")
        assert question.locator("p").first.inner_text() == asked["ask"]
        assert question.locator(".pass").inner_text() == "Type a number, then Enter. → shows the answer."
        assert question.get_by_role("textbox").get_attribute("inputmode") == "numeric"
        page.keyboard.press(" ")
        for wrong, why in asked["beliefs"]:
            enter(str(wrong))  # in place of the one before
            assert said(question) == (f"Not so: {wrong}", why)
        enter("876")
        assert said(question) == ("Not so: 876", "Look at the picture once more, and try again.")
        question.get_by_role("textbox").fill("three")
        question.get_by_role("textbox").press("Enter")
        assert said(question) == ("Not so: three", "The answer is a whole number: type its digits.")
        assert where(page) == at
        assert serious(page) == []
        enter(f"{asked['number']}")
        assert where(page) == at + 1
        assert said(question) == (f"Right: {asked['number']}", asked["why"])
        page.keyboard.press("ArrowRight")
        assert where(page) == at + 2, "the keys are the player's again"


@pytest.mark.parametrize("leave", ["Escape", "Enter"])
def test_who_typed_a_number_may_leave_it_and_be_told(browser, files, leave):
    file, trace = files("full-acceptance")
    asked = trace.steps[4]["question"]
    with opened(browser, file, "#step-4") as page:
        page.keyboard.press("ArrowRight")
        page.keyboard.press("7")
        page.keyboard.press("ArrowRight")  # in the text, not of the player
        assert where(page) == 4
        page.keyboard.press(leave)
        page.keyboard.press("ArrowRight")
        assert where(page) == 5
        assert said(page.locator(".question")) == (str(asked["number"]), asked["why"])


@pytest.mark.parametrize("key", ["ArrowRight", "Enter"])
def test_a_question_says_how_to_pass_it_and_space_does_not_answer_it(browser, files, key):
    file, trace = files("rejection")
    with opened(browser, file) as page:
        page.keyboard.press("ArrowRight")
        question = page.locator(".question")
        assert where(page) == 1
        assert question.locator(".pass").inner_text() == "→ or Enter shows the answer."
        for held in (" ", " "):
            page.keyboard.press(held)
        page.evaluate(
            """() => document.getElementById("player").shadowRoot.querySelector(".player").dispatchEvent(
                new KeyboardEvent("keydown", {key: "ArrowRight", repeat: true, bubbles: true}))"""
        )
        assert where(page) == 1, "nothing is answered by accident, and a key held down does not pass"
        assert question.locator("button").count() == len(trace.steps[1]["question"]["choices"])
        page.keyboard.press(key)
        assert where(page) == 2
        asked = trace.steps[1]["question"]
        assert list(said(question)) == asked["choices"][asked["right"]]


def test_a_long_recording_has_named_parts(browser, files):
    file, trace = files("preemption")
    with opened(browser, file) as page:
        jump = page.get_by_label("jump to")
        names = jump.locator("optgroup[label=parts] option").all_inner_texts()
        assert 4 <= len(names) <= 10
        assert names[0] == "A, B, C arrive"
        jump.select_option(label="C is preempted")
        first = trace.events().index("schedule.preempt") + 1
        assert where(page) == first
        page.keyboard.press("c")
        assert where(page) > first, "the jump leaves the keys to the player"
        assert trace.steps[where(page) - 1]["text"].startswith("B is preempted")
        page.keyboard.press("C")
        assert where(page) == first
    with opened(browser, files("rejection")[0]) as page:
        assert page.locator("optgroup[label=parts]").count() == 0, "two steps need no parts"


@pytest.mark.parametrize("name", SCENARIOS)
def test_parts_are_few_and_each_has_its_own_beginning(browser, files, name):
    file, trace = files(name)
    with opened(browser, file) as page:
        options = page.locator("optgroup[label=parts] option")
        starts = options.evaluate_all("all => all.map((each) => Number(each.value.slice(1)))")
        assert all(words.strip() for words in options.all_inner_texts())
    assert starts == sorted(set(starts))
    assert len(starts) <= 12
    assert (starts[:1] == [0]) == (len(trace) >= 15), "a long recording is in parts from its first step on"


def swipe(page, dx, over="div.told"):
    """A finger over a part of the player, and the time in which a browser would go back in its history."""
    box = page.locator(over).first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)
    there = [{"x": x + dx, "y": y + 3}]
    # The finger rests before it leaves: a fling would swallow the tap that follows it.
    for kind, points in [
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", there),
        ("touchMove", there),
        ("touchEnd", []),
    ]:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(100)


def test_a_finger_steps_and_is_told_how(browser, files):
    file, trace = files("diverging-insert")
    question = next(i for i, step in enumerate(trace.steps) if "question" in step)
    with opened(browser, file, viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True) as page:
        assert page.locator(".hint").inner_text().startswith("Swipe left or right")
        swipe(page, -120)
        swipe(page, -120)
        assert where(page) == 3
        swipe(page, 120)
        assert where(page) == 2
        swipe(page, -20)
        assert where(page) == 2, "a finger that trembles does not step"
        scene = page.locator(".scene").first
        scene.tap(position={"x": 300, "y": 60})
        assert where(page) == 3
        scene.tap(position={"x": 30, "y": 60})
        assert where(page) == 2
        page.evaluate(f"location.hash = '#step-{question}'")
        page.get_by_text(f"{question} / {len(trace)}").wait_for()
        swipe(page, -120)
        assert page.locator(".pass").inner_text() == "A swipe to the left shows the answer."
        swipe(page, -120)
        assert where(page) == question + 1


def test_a_swipe_to_the_right_is_never_the_browsers_back(browser, files):
    file, _ = files("diverging-insert")
    with opened(browser, file, viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True) as page:
        swipe(page, 120)
        assert where(page) == 1, "the first step is the first"
        swipe(page, -120)
        wide = page.locator(".scene").first
        wide.evaluate("it => (it.querySelector('svg').style.width = '900px')")
        assert wide.evaluate("it => it.scrollWidth > it.clientWidth")
        swipe(page, 120, ".scene")
        assert where(page) == 2, "a finger on a wide picture moves the picture"
        swipe(page, -120, ".scene")
        assert where(page) == 2
        assert wide.evaluate("it => it.scrollLeft") > 50
        swipe(page, 120)
        assert where(page) == 1


def test_a_new_trace_keeps_the_place_the_speed_and_the_theme(browser, tmp_path):
    traces = [play("diverging-insert", page_size=size) for size in (2, 1)]
    file = tmp_path / "widget.html"
    file.write_text(
        f"""<!doctype html><meta charset="utf-8"><title>x</title><div id="player"></div><script type="module">
        {module().replace("</", "<" + chr(92) + "/")}
        const traces = [{", ".join(map(inline, traces))}];
        let given = traces[0], again;
        window.change = (i) => ((given = i < 0 ? "{{" : traces[i]), again());
        render({{ model: {{ get: (name) => name === "trace" && given, on: (_, what) => (again = what) }},
                 el: document.getElementById("player") }});
        </script>""",
        encoding="utf-8",
    )
    with opened(browser, file) as page:
        split = [trace.events().index("radix.split") + 1 for trace in traces]
        assert split[0] != 1
        page.get_by_label("jump to").select_option("radix.split")
        page.keyboard.press("t")
        page.keyboard.press("+")
        page.evaluate("change(1)")
        assert where(page) == split[1], "the same happening, not the first step"
        assert page.locator(".player.dark").count() == 1
        assert page.get_by_label("speed").input_value() == "2"
        page.locator(".player").focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        assert where(page) == split[1], "what was seen is not asked again"
        page.evaluate("change(-1)")
        assert page.get_by_role("alert").is_visible()
        page.evaluate("change(0)")
        assert where(page) == split[0], "nor does a trace that cannot be shown lose it"


def test_a_player_among_others_says_that_it_wants_a_click(browser, files, tmp_path):
    file = tmp_path / "frame.html"
    file.write_text(f"<!doctype html><title>x</title>{play('rejection')._repr_html_()}", encoding="utf-8")
    with opened(browser, file) as page:
        hint = page.frame_locator("iframe").locator(".hint")
        assert hint.inner_text() == "Click here, then use the arrow keys."
        hint.click()
        assert "shows all keys" in hint.inner_text()
        page.keyboard.press("ArrowRight")
        assert page.frame_locator("iframe").locator(".question button").count() == 3
    with opened(browser, files("rejection")[0]) as page:
        assert "shows all keys" in page.locator(".hint").inner_text(), "a page of its own has the keys"


def test_a_page_opens_at_a_step_and_an_address_leads_to_another(browser, tmp_path):
    file = tmp_path / "at.html"
    file.write_text(html_page(play("page-pool"), at=4), encoding="utf-8")
    with opened(browser, file) as page:
        assert where(page) == 5
        page.keyboard.press("Home")
        assert where(page) == 1
    with opened(browser, file, "#step-12") as page:
        assert where(page) == 12
    file.write_text(f"<!doctype html><title>x</title>{frame(play('page-pool'), at=4)}", encoding="utf-8")
    with opened(browser, file) as page:
        assert page.frame_locator("iframe").locator(".where").inner_text() == "5 / 79", "within another page, too"


OVERLAPS = """svg => {
    const boxes = [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    const edge = svg.getBoundingClientRect().right;
    return boxes.filter((a) => a.right > edge || boxes.some((b) =>
        a !== b && Math.abs(a.top - b.top) < 1 && a.left < b.left && a.right > b.left)).length;
}"""
LONG = ", ".join(map(str, range(100, 220)))
COMPARED = {
    "sentence": "the pages of a node are found in the order in which they were inserted",
    "given": {"tokens": list(range(12)), "text": "<b>&", "name": LONG},
    "rows": [("page_table", [3, 1], [1, 3]), ("count", 2, 2), ("an unbroken name of some length", "x" * 400, LONG)],
}


@pytest.mark.parametrize("width", [400, 1280])
def test_what_came_is_drawn_beside_what_is_right(browser, tmp_path, width):
    with record("an exercise") as trace:
        emit("exercise.given", given=COMPARED["given"])
        emit("exercise.broken", **COMPARED)
    file = tmp_path / "compared.html"
    file.write_text(html_page(trace, at=1), encoding="utf-8")
    with opened(browser, file, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".scene").evaluate("it => it.scrollWidth - it.clientWidth") <= 0, "the picture does not fit"
        assert page.locator(".scene svg").evaluate(OVERLAPS) == 0, "a cell does not fit"
        assert page.locator(".scene h3").inner_text().lower() == "what came, and what is right"
        titles = page.locator(".scene title").all_text_contents()
        assert titles == [
            *("tokens", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]", "text", "<b>&", "name", LONG),
            *("page_table", "[3, 1]", "[1, 3]", "count", "2", "2"),
            *("an unbroken name of some length", "x" * 400, LONG),
        ]
        assert page.locator(".scene .wrong").count() == 2
        marks = page.locator(".scene text").all_text_contents()
        assert [mark for mark in marks if mark in ("✓", "✗")] == ["✗", "✗", "✓", "✗"], "not by colour alone"
        assert page.locator(".held .no").inner_text().endswith(COMPARED["sentence"])
        assert serious(page) == []
        page.keyboard.press("ArrowLeft")
        assert page.locator(".sentence").inner_text().startswith("the input: tokens = [0, 1, ")


def test_a_link_leads_to_its_step(browser, files):
    file, _ = files("page-pool")
    with opened(browser, file, "#step-12") as page:
        assert where(page) == 12
        page.keyboard.press("ArrowRight")
        assert page.url.endswith("#step-13")
        page.evaluate("location.hash = '#step-5'")
        page.wait_for_function("document.getElementById('player').shadowRoot.querySelector('input').value === '4'")
        page.evaluate("location.hash = '#step-99999'")
        page.wait_for_timeout(100)
        assert where(page) == 79
        page.get_by_role("button", name="copy a link").click()


def test_without_scripts_and_in_print_there_is_a_table(browser, files):
    file, trace = files("rejection")
    with opened(browser, file, java_script_enabled=False) as page:
        assert page.locator("table.told tbody tr").count() == len(trace)
        assert page.locator("table.told").is_visible()
    with opened(browser, file) as page:
        assert not page.locator("table.told").is_visible()
        page.emulate_media(media="print")
        assert page.locator("table.told").is_visible()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"version": 2', '"version": 1', 1), "has version 1; this player shows version 2"),
        (lambda text: text[: len(text) // 2], "not whole (was the file truncated?)"),
        (lambda text: "{}", "not a trace"),
        (lambda text: json.dumps(json.loads(text) | {"steps": []}), "has no steps"),
    ],
)
def test_a_bad_trace_leaves_a_message_in_place(browser, files, tmp_path, change, message):
    whole = files("rejection")[0].read_text(encoding="utf-8")
    start = whole.index('id="trace">') + len('id="trace">')
    end = whole.index("</script>", start)
    file = tmp_path / "bad.html"
    file.write_text(whole[:start] + change(whole[start:end]) + whole[end:], encoding="utf-8")
    with opened(browser, file) as page:
        assert message in page.get_by_role("alert").inner_text()


def test_a_cut_recording_says_so(browser, tmp_path):
    from inference_opt.cache.pool import PagePool

    with record("cut", max_bytes=1500) as trace:
        pool = PagePool(30, 1)
        for _ in range(30):
            pool.allocate(1)
    file = tmp_path / "cut.html"
    file.write_text(html_page(trace), encoding="utf-8")
    with opened(browser, file) as page:
        assert page.locator(".cut").inner_text() == trace.cut


def test_the_frame_of_a_notebook_plays(browser, tmp_path):
    file = tmp_path / "frame.html"
    file.write_text(f"<!doctype html><title>x</title>{play('rejection')._repr_html_()}", encoding="utf-8")
    with opened(browser, file) as page:
        inner = page.frame_locator("iframe")
        inner.locator(".player").focus()
        page.keyboard.press("End")
        assert inner.locator(".where").inner_text() == "2 / 2"
