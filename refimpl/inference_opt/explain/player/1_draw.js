// Strings of SVG, and what all scenes share. A scene is a function of the trace and a step's number, and of nothing else:
// so going forward and back comes by the same pictures. It returns {width, height, body, label}.

const escaped = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const esc = (value) => String(value).replace(/[&<>"']/g, (letter) => escaped[letter]);

const attributes = (more) =>
  Object.entries(more)
    .map(([name, value]) => ` ${name}="${esc(value)}"`)
    .join("");
const rect = (x, y, w, h, kind = "", more = {}) =>
  `<rect x="${x}" y="${y}" width="${Math.max(w, 0)}" height="${Math.max(h, 0)}" class="${kind}"${attributes(more)}/>`;
const text = (x, y, words, kind = "", more = {}) =>
  `<text x="${x}" y="${y}" class="${kind}"${attributes(more)}>${esc(words)}</text>`;
const line = (x1, y1, x2, y2, kind = "wire", more = {}) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${kind}"${attributes(more)}/>`;
const path = (d, kind = "wire", more = {}) => `<path d="${d}" class="${kind}"${attributes(more)}/>`;
const titled = (words, ...parts) => `<g><title>${esc(words)}</title>${parts.join("")}</g>`;

const solid = (i) => ({ style: `fill:var(--r${i % 8});stroke:var(--r${i % 8})` });
const tinted = (i) => ({
  style: `fill:color-mix(in srgb, var(--r${i % 8}) var(--tint), var(--paper));stroke:var(--r${i % 8})`,
});
const painted = (colour, stroke = "none") => ({ style: `fill:var(--${colour});stroke:${stroke}` });

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const short = (number) => (Number.isInteger(number) ? number.toLocaleString("en") : number.toPrecision(3));
// A Fraction was written as text: "3/8".
const value = (number) => {
  if (typeof number !== "string") return Number(number);
  const [above, below = 1] = number.split("/");
  return Number(above) / Number(below);
};
const wide = (words, size = 13) => String(words).length * size * 0.6; // about how wide a text will be

// Words in rows that fit a width: a word that is longer is broken, and what lies beyond `most` rows is left out.
function wrapped(words, width, size, most = Infinity) {
  const fit = Math.max(1, Math.floor(width / wide("x", size))),
    pieces = new RegExp(`\\S{1,${fit}}`, "gu"),
    rows = [""];
  for (const [piece] of words.matchAll(pieces)) {
    const longer = rows.at(-1) ? `${rows.at(-1)} ${piece}` : piece;
    if (longer.length > fit && rows.at(-1)) rows.push(piece);
    else rows[rows.length - 1] = longer;
  }
  return rows.length > most ? [...rows.slice(0, most - 1), `${rows[most - 1].slice(0, fit - 1)}…`] : rows;
}

// The same drawn, with the height they take: captions are read on a telephone, too.
function lines(x, y, words, kind, width) {
  const rows = wrapped(words, width - x, 10.5);
  return { body: rows.map((row, i) => text(x, y + i * 15, row, kind)).join(""), y: y + (rows.length - 1) * 15 };
}

// Requests have the colour of their arrival, wherever they are drawn.
const everyone = (state) => [...(state.schedule?.running ?? []), ...(state.schedule?.waiting ?? [])];

// A tree's nodes but its roots. Trees are lists, parents before children: they may be deeper than calls can be nested.
const treeNodes = (state) => (state.tree?.nodes ?? []).filter((node) => node.parent !== null);
