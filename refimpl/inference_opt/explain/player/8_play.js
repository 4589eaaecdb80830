// A trace at a step, and the ways to another: keys, gestures, buttons, scrubbing, links, questions.

const SWIPE = 40; // pixels

// `was`: where the reader stood in the trace that this one replaces; `at`: the step that it opens at, if no address says
// another. What it returns ends it, and says where the reader stands.
function play(player, trace, alone, was, at = 0) {
  const steps = trace.steps,
    last = steps.length - 1;
  const invariants = [...new Set(steps.flatMap((step) => Object.keys(step.invariants)))];
  const kinds = Object.keys(SCENES).filter((kind) => steps.some((step) => step.state[kind]));
  const linkable = alone && location.protocol !== "about:", // a frame has no address of its own
    parts = story(trace);
  player.innerHTML = frame(trace, parts, linkable);
  player.setAttribute("aria-label", `step through: ${trace.title}`);
  const find = (selector) => player.querySelector(selector);
  const range = find("input"),
    scenes = find(".scenes"),
    box = find(".question"),
    dialog = find("dialog");
  scenes.innerHTML = kinds
    .map(
      (kind) =>
        `<figure class="scene" tabindex="0" data-kind="${kind}" aria-label="${SCENES[kind][0]}"><h3>${SCENES[kind][0]}</h3><div></div></figure>`,
    )
    .join("");
  const answered = new Set();
  find("[data-do=link]").hidden = !linkable;
  let index = 0,
    asked = null,
    timer = 0,
    wanted = was?.wanted ?? "",
    room = 0,
    zoom = 1,
    touch = null;

  const linked = () => Number(location.hash.match(/^#step-(\d+)$/)?.[1] ?? at + 1) - 1;
  const clamp = (i) => Math.min(last, Math.max(0, Number.isFinite(i) ? i : 0));

  // Looked up when the size changes, not at every step: a question about the layout makes the browser lay all out anew.
  function measure() {
    const before = room;
    zoom = parseFloat(getComputedStyle(player).fontSize) / 15 || 1;
    room = Math.max(260 * zoom, scenes.clientWidth - 2);
    return room !== before;
  }

  // A button that is pressed and disabled loses the focus; the player keeps it.
  function disable(name, off) {
    const it = find(`[data-do=${name}]`);
    if (off && it.matches(":focus")) player.focus({ preventScroll: true });
    it.disabled = off;
  }

  function draw() {
    const step = steps[index],
      before = steps[index - 1];
    range.value = index;
    range.setAttribute("aria-valuetext", `step ${index + 1} of ${steps.length}: ${step.event}`);
    find(".where").textContent = `${index + 1} / ${steps.length}`;
    find(".event").textContent = step.event;
    find(".sentence").textContent = step.text;
    for (const name of ["first", "back"]) disable(name, index === 0);
    for (const name of ["last", "forward"]) disable(name, index === last);
    const source = trace.sources[step.source];
    find(".file").textContent = `${source.file}, line ${source.line}`;
    find("pre").innerHTML = drawSource(source);
    find(".held").innerHTML = drawHeld(step, invariants);
    find(".counts tbody").innerHTML = drawCounts(step, before);
    find(".heldBox").hidden = !invariants.length;
    find(".countsBox").hidden = !Object.keys(step.counters).length;
    paint();
    if (linkable && location.hash !== `#step-${index + 1}` && (index || location.hash))
      history.replaceState(null, "", `#step-${index + 1}`);
  }

  function paint() {
    const step = steps[index];
    for (const figure of scenes.children) {
      const state = step.state[figure.dataset.kind] ? step.state : null;
      figure.hidden = !state;
      if (!state) {
        figure.lastElementChild.innerHTML = "";
        continue;
      }
      const scene = SCENES[figure.dataset.kind][1]({
        state,
        before: steps[index - 1]?.state,
        step,
        trace,
        index,
        width: room / zoom,
      });
      figure.lastElementChild.innerHTML =
        `<svg role="img" aria-label="${esc(scene.label)}" width="${scene.width * zoom}" height="${scene.height * zoom}" ` +
        `viewBox="-3 -3 ${scene.width + 6} ${scene.height + 6}">${scene.body}</svg>`;
    }
  }

  function go(to) {
    asked = null;
    box.hidden = true;
    disable("play", false);
    index = clamp(to);
    draw();
  }

  function forward() {
    if (asked !== null) return answer();
    const next = steps[index + 1];
    if (!next) return pause();
    if (!next.question || answered.has(index + 1)) return go(index + 1);
    pause();
    ask(index + 1);
  }

  function ask(at) {
    box.innerHTML = drawQuestion(steps[(asked = at)].question);
    box.hidden = false; // the focus stays where it is: on a choice, Space would choose it
    disable("play", true);
  }

  // A choice's place, or what was typed. A wrong one is told why, and the question stays; without one, the answer is shown.
  function answer(given) {
    const at = asked,
      verdict = judged(steps[at].question, given),
      told = drawVerdict(verdict, given === undefined);
    if (!verdict.right) {
      find(".said").innerHTML = told;
      box.querySelector(`[data-answer="${given}"]`)?.classList.add("no");
      return box.querySelector("input") && player.focus({ preventScroll: true }); // → is the player's again
    }
    answered.add(at);
    go(at);
    box.innerHTML = told;
    box.hidden = false;
    player.focus({ preventScroll: true });
  }

  function pause() {
    clearInterval(timer);
    timer = 0;
    const it = find("[data-do=play]");
    it.innerHTML = icon("play");
    it.setAttribute("aria-label", "play");
  }

  function run() {
    if (timer) return pause();
    if (asked !== null) return;
    if (index === last) go(0);
    timer = setInterval(forward, 1000 / Number(find("[data-do=speed]").value));
    const it = find("[data-do=play]");
    it.innerHTML = icon("pause");
    it.setAttribute("aria-label", "pause");
  }

  function speed(change) {
    const select = find("[data-do=speed]");
    select.selectedIndex = Math.min(select.options.length - 1, Math.max(0, select.selectedIndex + change));
    if (timer) (run(), run());
  }

  function same(direction, event = steps[index].event) {
    for (let n = 1; n <= steps.length; n++) {
      const i = (index + direction * n + n * steps.length) % steps.length; // round the end
      if (steps[i].event === event) return go(i);
    }
  }

  function part(direction) {
    const at = direction > 0 ? parts.find((each) => each.at > index) : parts.findLast((each) => each.at < index);
    if (at) go(at.at);
  }

  // The step of this trace that is nearest to one of another: the same occurrence of the same event.
  function nearest({ event, nth, index: at }) {
    const alike = steps.flatMap((step, i) => (step.event === event ? [i] : []));
    return alike[Math.min(nth, alike.length - 1)] ?? at;
  }

  async function link() {
    if (!linkable) return;
    const address = `${location.href.split("#")[0]}#step-${index + 1}`;
    history.replaceState(null, "", `#step-${index + 1}`);
    try {
      await navigator.clipboard.writeText(address);
      find(".where").textContent = "link copied";
    } catch {
      find(".where").textContent = "see address"; // no clipboard here: the address bar has it
    }
  }

  const night = matchMedia("(prefers-color-scheme: dark)");
  const around = () => {
    const { jpThemeLight: lab, theme } = document.body.dataset; // JupyterLab and the docs have a theme of their own
    return lab ? lab === "false" : theme === "dark" || (theme !== "light" && night.matches);
  };
  const dark = () => player.classList.toggle("dark", wanted ? wanted === "dark" : around());
  const theme = () => ((wanted = player.classList.contains("dark") ? "light" : "dark"), dark());
  const help = () => (dialog.open ? dialog.close() : dialog.showModal());
  const actions = {
    first: () => go(0),
    back: () => go(index - 1),
    play: run,
    forward,
    last: () => go(last),
    link,
    theme,
    help,
    check: () => answer(box.querySelector("input").value),
    jump: (to) => {
      find("[data-do=jump]").value = "";
      if (to.startsWith("@")) go(Number(to.slice(1)));
      else if (to) same(1, to);
      player.focus({ preventScroll: true });
    },
    speed: () => speed(0),
  };
  const keys = {
    ArrowRight: forward,
    j: forward,
    ArrowLeft: actions.back,
    k: actions.back,
    Home: actions.first,
    End: actions.last,
    " ": run,
    "+": () => speed(1),
    "=": () => speed(1),
    "-": () => speed(-1),
    e: () => same(1),
    E: () => same(-1),
    c: () => part(1),
    C: () => part(-1),
    g: () => range.focus(),
    l: link,
    t: theme,
    "?": help,
    Enter: () => asked !== null && answer(),
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const target = event.composedPath()[0];
    const typing =
      target.tagName === "SELECT" || target.tagName === "TEXTAREA" || (target.tagName === "INPUT" && target !== range);
    const pushes = target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter");
    const question = asked === null ? null : steps[asked].question,
      number = box.querySelector("input");
    if (target === number) {
      if (event.key === "Enter") actions.check();
      if (event.key === "Escape") player.focus({ preventScroll: true });
      return event.stopPropagation(); // what is typed is no command, of the notebook neither
    }
    if (question && number && !typing && /^\d$/.test(event.key)) {
      number.focus();
      number.select(); // the digit goes there, in place of the last answer
      return event.stopPropagation();
    }
    const choice = question?.choices?.[Number(event.key) - 1] && Number(event.key) - 1;
    const action = choice === undefined ? keys[event.key] : () => answer(choice);
    if (typing || pushes || !action) return;
    if (event.repeat && asked !== null) return event.preventDefault(); // a key held down does not pass a question
    if (timer && action !== run && event.key !== "+" && event.key !== "-") pause();
    event.preventDefault();
    event.stopPropagation(); // or the notebook would take it for a command
    action();
  }

  // The arrows are those of the player under the pointer, while nothing else on the page has the keys.
  const hovered = (event) => {
    const idle = document.activeElement === document.body && player.matches(":hover");
    if (idle && (event.key === "ArrowLeft" || event.key === "ArrowRight")) pressed(event);
  };

  const manual = (action) => (timer && pause(), action());
  // What is wider than its place is moved by the finger itself.
  const scrolls = (target) => {
    const it = target.closest(".scene, pre");
    return it && it.scrollWidth > it.clientWidth;
  };
  const touched = (event) => {
    const { clientX: x, clientY: y } = event.touches[0],
      free = event.touches.length === 1 && event.target !== range && !scrolls(event.target);
    touch = free ? { x, y } : null;
  };
  const lifted = (event) => {
    if (!touch) return;
    const dx = event.changedTouches[0].clientX - touch.x,
      dy = event.changedTouches[0].clientY - touch.y;
    touch = null;
    if (Math.abs(dx) >= SWIPE && Math.abs(dx) > 2 * Math.abs(dy)) manual(dx < 0 ? forward : actions.back);
  };

  const clicked = (event) => {
    const scene = event.pointerType === "touch" && event.target.closest(".scene");
    if (scene) {
      const { left, width } = scene.getBoundingClientRect();
      return manual(event.clientX < left + width / 2 ? actions.back : forward);
    }
    const it = event.target.closest("[data-do], [data-answer]");
    if (it?.dataset.answer) {
      answer(Number(it.dataset.answer));
      if (event.detail) player.focus({ preventScroll: true }); // by a pointer: Space does not choose it once more
      return;
    }
    if (it?.tagName === "BUTTON") {
      if (timer && it.dataset.do !== "play") pause();
      actions[it.dataset.do]();
      if (event.detail && !dialog.open) player.focus({ preventScroll: true }); // by a pointer: the keys stay the player's
    }
  };
  const changed = (event) =>
    event.target === range
      ? (pause(), go(Number(range.value)))
      : actions[event.target.dataset.do]?.(event.target.value);
  const hashed = () => go(clamp(linked()));
  const keysOn = alone ? document : player;
  const watcher = new ResizeObserver(() => measure() && paint());
  const listeners = [
    [keysOn, "keydown", pressed],
    [player, "click", clicked],
    [player, "change", changed],
    [player, "touchstart", touched, { passive: true }],
    [player, "touchend", lifted],
    [night, "change", dark],
  ];
  if (!alone) listeners.push([document, "keydown", hovered]);
  if (linkable) listeners.push([window, "hashchange", hashed]);
  range.addEventListener("input", changed);
  for (const [on, kind, what, how] of listeners) on.addEventListener(kind, what, how);
  if (was) find("[data-do=speed]").value = was.speed;
  dark();
  measure();
  go(was ? nearest(was) : linkable ? linked() : at);
  if (was) for (let i = 0; i <= index; i++) answered.add(i); // what lies behind the reader is not asked
  watcher.observe(player);
  return () => {
    pause();
    watcher.disconnect();
    for (const [on, kind, what] of listeners) on.removeEventListener(kind, what);
    const { event } = steps[index],
      nth = steps.slice(0, index).filter((step) => step.event === event).length;
    return { event, nth, index, wanted, speed: find("[data-do=speed]").value };
  };
}
