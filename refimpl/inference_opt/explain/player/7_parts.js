// What stands beside the pictures: source, invariants, counters, the help.

const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");
const SPEEDS = {
  0.5: "half a step a second",
  1: "1 step a second",
  2: "2 steps a second",
  5: "5 steps a second",
  20: "20 steps a second",
};
const HELP = [
  ["← →", "a step back, a step forward (also k, j)"],
  ["Home End", "first, last step"],
  ["Space", "play, pause"],
  ["+ −", "faster, slower"],
  ["e E", "next, previous step of the same event"],
  ["c C", "next, previous part of the story"],
  ["g", "go to a step: choose with ← →"],
  ["→ Enter", "show the answer"],
  ["1 2 3", "choose an answer, or type a number"],
  ["l", "copy a link to this step"],
  ["t", "light or dark"],
  ["?", "these keys"],
];
const ICONS = {
  first: "M2 2h2v12H2zM14 2v12L5 8z",
  back: "M12 2v12L3 8z",
  play: "M4 2v12l9-6z",
  pause: "M3 2h4v12H3zM9 2h4v12H9z",
  forward: "M4 2v12l9-6z",
  last: "M12 2h2v12h-2zM2 2v12l9-6z",
  link: "M6.5 9.5l3-3M7 4l2-2a3 3 0 0 1 5 5l-2 2M9 12l-2 2a3 3 0 0 1-5-5l2-2",
  theme: "M8 1a7 7 0 1 0 0 14zM8 1v1.2a5.8 5.8 0 0 1 0 11.6V15A7 7 0 0 0 8 1z",
};
const icon = (name) => {
  const look = name === "link" ? ' style="fill:none;stroke:currentColor;stroke-width:1.7;stroke-linecap:round"' : "";
  const shape =
    name === "forward" ? "M3 2v12l7-6zM11 2h2v12h-2z" : name === "back" ? "M13 2v12L6 8zM3 2h2v12H3z" : ICONS[name];
  return `<svg viewBox="0 0 16 16" aria-hidden="true"${look}><path d="${shape}"/></svg>`;
};
const button = (name, label, keys) =>
  `<button type="button" data-do="${name}" aria-label="${label}" title="${label} (${keys})">${ICONS[name] ? icon(name) : name === "help" ? "?" : name}</button>`;

const options = (label, all) =>
  all.length
    ? `<optgroup label="${label}">${all.map(([at, words]) => `<option value="${esc(at)}">${esc(words)}</option>`).join("")}</optgroup>`
    : "";

// What keys do, or, where they are not the player's yet, how they come to be; on a screen that is touched, gestures.
function hint(keys) {
  if (TOUCH.matches) return "Swipe left or right for a step, or tap the right or left half of a picture.";
  const words = "<kbd>←</kbd> <kbd>→</kbd> a step, <kbd>Space</kbd> plays, <kbd>?</kbd> shows all keys.";
  if (keys) return words;
  return `<span class="afar">Click here, then use the arrow keys.</span><span class="near">${words}</span>`;
}

function frame(trace, parts, keys) {
  const counts = new Map();
  for (const { event } of trace.steps) counts.set(event, (counts.get(event) ?? 0) + 1);
  const jumps =
    options("parts", parts.map(({ at, name }) => [`@${at}`, name])) +
    options("next step of an event", [...counts].map(([event, n]) => [event, `${event} · ${n}`]));
  const speeds = Object.entries(SPEEDS)
    .map(([n, words]) => `<option value="${n}"${n === "1" ? " selected" : ""}>${words}</option>`)
    .join("");
  return `<h2>${esc(trace.title)}</h2>${trace.about ? `<p class="about">${esc(trace.about)}</p>` : ""}
    <div class="bar" role="toolbar" aria-label="steps">
      ${button("first", "first step", "Home")}${button("back", "a step back", "←")}${button("play", "play", "Space")}
      ${button("forward", "a step forward", "→")}${button("last", "last step", "End")}
      <input type="range" min="0" max="${trace.steps.length - 1}" step="1" value="0" aria-label="step">
      <span class="where"></span><span class="space"></span>
      <select data-do="jump" aria-label="jump to"><option value="">jump to …</option>${jumps}</select>
      <select data-do="speed" aria-label="speed">${speeds}</select>
      ${button("link", "copy a link to this step", "l")}${button("theme", "light or dark", "t")}${button("help", "keys", "?")}
    </div>
    <p class="hint">${hint(keys)}</p>
    ${trace.cut ? `<p class="cut">${esc(trace.cut)}</p>` : ""}
    <div class="told"><span class="event"></span><p class="sentence" aria-live="polite"></p></div>
    <div class="question" role="group" aria-label="question" aria-live="polite" hidden></div>
    <div class="main"><div class="scenes"></div><aside aria-label="source, invariants, counters">
      <section><h3>source <span class="file"></span></h3><pre tabindex="0" aria-label="source lines"></pre></section>
      <section class="heldBox"><h3>invariants</h3><ul class="held"></ul></section>
      <section class="countsBox"><h3>counters</h3><table class="counts"><tbody></tbody></table></section>
    </aside></div>
    <dialog aria-label="keys"><h2>Keys</h2><dl>${HELP.map(
      ([keys, words]) =>
        `<dt>${keys
          .split(" ")
          .map((key) => `<kbd>${esc(key)}</kbd>`)
          .join(" ")}</dt><dd>${words}</dd>`,
    ).join("")}</dl>
      <button type="button" data-do="help">close</button></dialog>`;
}

function drawSource(source) {
  const indent = Math.min(...source.lines.filter(([, words]) => words.trim()).map(([, words]) => words.search(/\S/)));
  return source.lines
    .map(
      ([n, words]) =>
        `<span${n === source.line ? ' class="here" aria-current="true"' : ""}><i>${n}</i>${esc(words.slice(indent)) || " "}</span>`,
    )
    .join("");
}

// All invariants of the trace, always in the same order; those that this step did not look at are grey.
function drawHeld(step, all) {
  return all
    .map((name) => {
      const held = step.invariants[name];
      const [kind, mark, words] =
        held === undefined ? ["unseen", "·", "not checked here"] : held ? ["yes", "✓", "holds"] : ["no", "✗", "broken"];
      return `<li class="${kind}"><b role="img" aria-label="${words}">${mark}</b><span>${esc(name)}</span></li>`;
    })
    .join("");
}

function drawCounts(step, before) {
  const mine = (count) => (typeof count === "object" ? count.value : count);
  return Object.entries(step.counters)
    .map(([name, count]) => {
      const change = before && name in before.counters ? mine(count) - mine(before.counters[name]) : 0;
      const delta = change ? `${change > 0 ? "+" : "−"}${short(Math.abs(change))}` : "";
      const most = typeof count === "object" ? Math.max(count.value, count.naive) : 0;
      const bars = most
        ? `<tr><td colspan="3" class="meter"><div style="width:${(100 * count.value) / most}%"></div>` +
          `<div style="width:${(100 * count.naive) / most}%"></div></td></tr>`
        : "";
      const beside = most ? ` <span title="the naive baseline">of ${short(count.naive)} naively</span>` : "";
      return `<tr><th scope="row">${esc(name)}</th><td>${short(mine(count))}${beside}</td><td class="delta">${delta}</td></tr>${bars}`;
    })
    .join("");
}
