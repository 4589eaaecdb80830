// One verdict on a draft: both laws, the number drawn, what is left after a rejection.

function drawSpeculation({ state, trace, width }) {
  const s = state.speculation,
    name = (token) => (trace.labels[token] ?? String(token)).replace(" ", "␣");
  const cell = 40,
    left = 64,
    pitch = 56,
    depth = [],
    row = [];
  const step = cell + (s.parents.some((parent, i) => parent !== i - 1) ? 26 : 6); // a tree needs room for its branches
  s.parents.forEach((parent, i) => (depth[i] = parent < 0 ? 0 : depth[parent] + 1));
  let rows = 0;
  const place = (i) => {
    row[i] = rows;
    const children = s.drafts.map((_, k) => k).filter((k) => s.parents[k] === i);
    children.length ? children.forEach(place) : (rows += 1);
  };
  s.parents.forEach((parent, i) => parent < 0 && place(i));
  const at = (i) => [left + depth[i] * step, (row[i] ?? 0) * pitch + 4];
  const looks = { kept: ["✓", "good"], rejected: ["✗", "bad"], open: ["?", "accent"] };
  let body = text(0, 24, "draft", "dim");
  s.drafts.forEach((token, i) => {
    const [x, y] = at(i),
      fate = s.fates[i],
      [mark, colour] = looks[fate] ?? ["", "line"];
    const look = fate === "kept" ? painted("kept", "var(--good)") : { style: `fill:var(--paper);stroke:var(--${colour})` };
    if (s.parents[i] >= 0 && step > cell + 6) {
      const [px, py] = at(s.parents[i]);
      body += path(`M${px + cell} ${py + 15}H${px + cell + 13}V${y + 15}H${x}`);
    }
    body += titled(
      `draft ${i}, ${name(token)}: ${fate}`,
      rect(x, y, cell, 30, "", {
        rx: 5,
        "stroke-width": 1.5,
        ...look,
        ...(fate === "never looked at" ? { "stroke-dasharray": "4 3" } : {}),
      }),
      text(x + cell / 2, y + 20, name(token), `mid${mark ? "" : " dim"}`),
      fate === "rejected"
        ? line(x + 6, y + 26, x + cell - 6, y + 4, "", { style: "stroke:var(--bad);stroke-width:1.5;stroke-opacity:.6" })
        : "",
      text(x + cell / 2, y + 44, mark, `mid ${colour}`),
      i === s.at && s.drawn === null ? rect(x - 3, y - 3, cell + 6, 36, "fresh", { rx: 7 }) : "",
    );
  });
  const columns = Math.max(0, ...depth.map((d) => d + 1));
  if (s.drawn !== null) {
    const x = left + columns * step + 22,
      y = (row[s.at] ?? 0) * pitch; // beside the draft that it follows or replaces
    body +=
      text(x - 16, y + 24, "→", "dim") +
      rect(x, y + 4, cell, 30, "", { rx: 5, ...painted("owed") }) +
      text(x + cell / 2, y + 24, name(s.drawn), "mid light bold") +
      rect(x - 3, y + 1, cell + 6, 36, "fresh", { rx: 7 }) +
      text(x + cell / 2, y + 48, "drawn", "mid small dim");
  }
  const top = 18 + Math.max(1, rows) * pitch,
    high = 150,
    n = s.vocab.length,
    column = Math.min(76, (width - left - 40) / n), // with room for a label on the right
    most = Math.max(...s.p, ...s.q, 0.01) * 1.08;
  const y = (share) => top + high - (share / most) * high,
    base = top + high;
  body +=
    line(left, base, left + n * column, base, "axis") +
    text(left - 8, base + 4, "0", "small dim end") +
    text(left - 8, y(most / 1.08) + 4, (most / 1.08).toFixed(2), "small dim end num");
  const judged = s.judged;
  let number = "";
  s.vocab.forEach((token, i) => {
    const x = left + i * column + column * 0.1,
      w = column * 0.8,
      p = s.p[i],
      q = judged ? s.q[i] : 0,
      both = judged ? Math.min(p, q) : 0;
    body += titled(
      `${name(token)}: p ${p.toFixed(3)}${judged ? `, q ${q.toFixed(3)}, min ${both.toFixed(3)}` : ""}`,
      rect(x, y(both), w, base - y(both), "", painted("kept")),
      rect(x, y(p), w, y(both) - y(p), "", painted("owed")),
      rect(x, y(Math.max(q, both)), w, y(both) - y(Math.max(q, both)), "", painted("much")),
      line(x - 3, y(p), x + w + 3, y(p), "", { style: "stroke:var(--p);stroke-width:3" }),
      judged ? line(x - 3, y(q), x + w + 3, y(q), "", { style: "stroke:var(--q);stroke-width:3" }) : "",
      text(x + w / 2, base + 17, name(token), token === s.x || token === s.drawn ? "mid bold" : "mid dim"),
    );
    if (token === s.x && s.u !== null) {
      const h = y(s.u * q);
      number =
        line(x - 6, h, x + w + 6, h, "", { style: "stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3" }) +
        `<circle cx="${x + w / 2}" cy="${h}" r="5" style="fill:var(--${s.kept ? "good" : "bad"});stroke:var(--paper);stroke-width:1.5"/>` +
        text(x + w + 9, h + 4, "u · q", "small bold", { style: "paint-order:stroke;stroke:var(--paper);stroke-width:5" });
    }
  });
  body += number; // over the bars
  let legend = left;
  let legendY = base + 30;
  for (const [colour, words] of judged
    ? [
        ["p", s.law],
        ["q", "q, draft"],
        ["kept", "min: kept"],
        ["owed", "(p − q)⁺: owed"],
        ["much", "(q − p)⁺: rejected"],
      ]
    : [["p", s.law]]) {
    if (legend + 26 + wide(words, 11) > width) ((legend = left), (legendY += 18));
    body += rect(legend, legendY, 11, 11, "", painted(colour)) + text(legend + 15, legendY + 10, words, "small dim");
    legend += 28 + wide(words, 11);
  }
  let bottom = legendY + 16;
  if (s.h !== undefined) {
    const long = n * column,
      x = left + s.u * long;
    body +=
      text(left, bottom + 24, `u = ${s.u.toFixed(3)} against h = ${s.h.toFixed(3)}`, "small") +
      rect(left, bottom + 34, long, 14, "free") +
      rect(left, bottom + 34, s.h * long, 14, "", painted("kept")) +
      `<circle cx="${x}" cy="${bottom + 41}" r="6" style="fill:var(--${s.kept ? "good" : "bad"});stroke:var(--paper);stroke-width:1.5"/>`;
    bottom += 58;
  }
  if (s.drawn !== null) {
    bottom += 30;
    const said = lines(
      left,
      bottom,
      s.source,
      "small",
      Math.max(width, 320),
    );
    body += said.body;
    bottom = said.y;
    s.vocab.forEach((token, i) => {
      const x = left + i * column + column * 0.1,
        w = column * 0.8,
        h = (60 * s.rest[i]) / Math.max(...s.rest);
      body += titled(
        `${name(token)}: ${s.rest[i].toFixed(3)}`,
        rect(x, bottom + 78 - h, w, h, "", painted("owed")),
        text(x + w / 2, bottom + 95, name(token), token === s.drawn ? "mid bold" : "mid dim"),
      );
      if (token === s.drawn) body += rect(x - 3, bottom + 75 - h, w + 6, h + 6, "fresh", { rx: 3 });
    });
    body += line(left, bottom + 78, left + n * column, bottom + 78, "axis");
    bottom += 102;
  }
  return {
    width: Math.max(left + n * column + 10, left + columns * step + 2 * (cell + 6), legend),
    height: bottom,
    body,
    label:
      `Verdict: draft ${s.drafts.map(name).join(" ")}, ${s.drafts.filter((_, i) => s.fates[i] === "kept").map(name).join(" ") || "nothing"} kept so far. ` +
      s.vocab
        .map((token, i) => `${name(token)}: p ${s.p[i].toFixed(2)}${judged ? `, q ${s.q[i].toFixed(2)}` : ""}`)
        .join("; "),
  };
}
