// A trace at a step, and the ways to another: keys, buttons, scrubbing, links, questions.

function play(player, trace, alone, el) {
  const steps = trace.steps,
    last = steps.length - 1;
  const invariants = [...new Set(steps.flatMap((step) => Object.keys(step.invariants)))];
  const kinds = Object.keys(SCENES).filter((kind) => steps.some((step) => step.state[kind]));
  player.innerHTML = frame(trace);
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
  const answered = new Set(),
    linkable = alone && location.protocol !== "about:"; // a frame has no address of its own
  find("[data-do=link]").hidden = !linkable;
  let index = 0,
    asked = null,
    timer = 0,
    wanted = "",
    room = 0,
    zoom = 1;

  const linked = () => Number(location.hash.match(/^#step-(\d+)$/)?.[1] ?? 1) - 1;
  const clamp = (i) => Math.min(last, Math.max(0, Number.isFinite(i) ? i : 0));

  // Looked up when the size changes, not at every step: a question about the layout makes the browser lay all out anew.
  function measure() {
    const before = room;
    zoom = parseFloat(getComputedStyle(player).fontSize) / 15 || 1;
    room = Math.max(260 * zoom, scenes.clientWidth - 2);
    return room !== before;
  }

  function draw() {
    const step = steps[index],
      before = steps[index - 1];
    range.value = index;
    range.setAttribute("aria-valuetext", `step ${index + 1} of ${steps.length}: ${step.event}`);
    find(".where").textContent = `${index + 1} / ${steps.length}`;
    find(".event").textContent = step.event;
    find(".sentence").textContent = step.text;
    for (const name of ["first", "back"]) find(`[data-do=${name}]`).disabled = index === 0;
    for (const name of ["last", "forward"]) find(`[data-do=${name}]`).disabled = index === last;
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
    index = clamp(to);
    draw();
  }

  function forward() {
    const next = steps[index + 1];
    if (!next) return pause();
    if (!next.question || answered.has(index + 1)) return go(index + 1);
    pause();
    if (asked === null) ask(index + 1);
  }

  function ask(at) {
    const { ask: words, choices } = steps[(asked = at)].question;
    const options = choices.length ? choices : ["Show me"];
    box.innerHTML =
      `<p>${esc(words)}</p>` +
      options.map((choice, i) => `<button type="button" data-answer="${i}">${esc(choice)}</button>`).join("");
    box.hidden = false;
    box.querySelector("button").focus();
  }

  function answer(chosen) {
    const at = asked,
      { answer: right, choices } = steps[at].question;
    answered.add(at);
    go(at);
    const hit = chosen === undefined || !choices.length ? null : choices[chosen] === right;
    box.innerHTML = `<p class="verdict ${hit === null ? "" : hit ? "yes" : "no"}">${hit === null ? "" : hit ? "Right: " : "Not so: "}${esc(right)}</p>`;
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
    jump: (event) => ((find("[data-do=jump]").value = ""), event && same(1, event)),
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
    const digit = asked !== null && "123456789".indexOf(event.key);
    const action =
      digit !== false && digit >= 0 && digit < steps[asked].question.choices.length
        ? () => answer(digit)
        : keys[event.key];
    if (typing || pushes || !action) return;
    if (timer && action !== run && event.key !== "+" && event.key !== "-") pause();
    event.preventDefault();
    event.stopPropagation(); // or the notebook would take it for a command
    action();
  }

  const clicked = (event) => {
    const it = event.target.closest("[data-do], [data-answer]");
    if (it?.dataset.answer) return answer(Number(it.dataset.answer));
    if (it?.tagName === "BUTTON") {
      if (timer && it.dataset.do !== "play") pause();
      actions[it.dataset.do]();
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
    [night, "change", dark],
  ];
  if (linkable) listeners.push([window, "hashchange", hashed]);
  range.addEventListener("input", changed);
  for (const [on, kind, what] of listeners) on.addEventListener(kind, what);
  dark();
  measure();
  go(linkable ? linked() : 0);
  watcher.observe(player);
  return () => {
    pause();
    watcher.disconnect();
    for (const [on, kind, what] of listeners) on.removeEventListener(kind, what);
  };
}
