// One verdict on a draft: both laws, the number drawn, what is left after a rejection.

function drawSpeculation({ state, before, trace, width }) {
  const s = state.speculation,
    name = (token) => (trace.labels[token] ?? String(token)).replace(" ", "␣");
  const cell = 40,
    left = 64,
    known = s.emitted.slice(0, s.at);
  const rejected = s.kept === false || (s.x === null && s.at < s.drafts.length);
  let body = text(0, 24, "draft", "dim");
  s.drafts.forEach((token, i) => {
    const x = left + i * (cell + 6),
      fate =
        i < known.length || (i === s.at && s.kept)
          ? "kept"
          : i === s.at && rejected
            ? "rejected"
            : rejected
              ? "never looked at"
              : "to be judged";
    const look =
      fate === "kept"
        ? painted("kept", "var(--good)")
        : { style: `fill:var(--paper);stroke:var(--${fate === "rejected" ? "bad" : "line"})` };
    body += titled(
      `draft ${i}, ${name(token)}: ${fate}`,
      rect(x, 4, cell, 30, "", {
        rx: 5,
        "stroke-width": 1.5,
        ...look,
        ...(fate === "never looked at" ? { "stroke-dasharray": "4 3" } : {}),
      }),
      text(x + cell / 2, 24, name(token), `mid${fate === "never looked at" || fate === "to be judged" ? " dim" : ""}`),
      fate === "rejected"
        ? line(x + 6, 30, x + cell - 6, 8, "", { style: "stroke:var(--bad);stroke-width:1.5;stroke-opacity:.6" })
        : "",
      text(
        x + cell / 2,
        48,
        fate === "kept" ? "✓" : fate === "rejected" ? "✗" : "",
        `mid ${fate === "kept" ? "good" : "bad"}`,
      ),
      i === s.at && s.x !== null ? rect(x - 3, 1, cell + 6, 36, "fresh", { rx: 7 }) : "",
    );
  });
  if (s.drawn !== null) {
    const x = left + s.drafts.length * (cell + 6) + 22;
    body +=
      text(x - 16, 24, "→", "dim") +
      rect(x, 4, cell, 30, "", { rx: 5, ...painted("owed") }) +
      text(x + cell / 2, 24, name(s.drawn), "mid light bold") +
      rect(x - 3, 1, cell + 6, 36, "fresh", { rx: 7 }) +
      text(x + cell / 2, 48, "drawn", "mid small dim");
  }
  const top = 74,
    high = 150,
    n = s.vocab.length,
    column = Math.min(76, (width - left - 10) / n),
    most = Math.max(...s.p, ...s.q, 0.01) * 1.08;
  const y = (share) => top + high - (share / most) * high,
    base = top + high;
  body +=
    line(left, base, left + n * column, base, "axis") +
    text(left - 8, base + 4, "0", "small dim end") +
    text(left - 8, y(most / 1.08) + 4, (most / 1.08).toFixed(2), "small dim end num");
  const judged = s.x !== null || rejected;
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
      body +=
        line(x - 6, h, x + w + 6, h, "", { style: "stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3" }) +
        `<circle cx="${x + w / 2}" cy="${h}" r="5" style="fill:var(--${s.kept ? "good" : "bad"});stroke:var(--paper);stroke-width:1.5"/>` +
        text(Math.min(x + w + 8, left + n * column - 46), h - 6, "u · q", "small bold");
    }
  });
  let legend = left;
  let legendY = base + 30;
  for (const [colour, words] of judged
    ? [
        ["p", "p, target"],
        ["q", "q, draft"],
        ["kept", "min: kept"],
        ["owed", "(p − q)⁺: owed"],
        ["much", "(q − p)⁺: rejected"],
      ]
    : [["p", "p, target"]]) {
    if (legend + 26 + wide(words, 11) > width) ((legend = left), (legendY += 18));
    body += rect(legend, legendY, 11, 11, "", painted(colour)) + text(legend + 15, legendY + 10, words, "small dim");
    legend += 28 + wide(words, 11);
  }
  let bottom = legendY + 16;
  if (s.drawn !== null) {
    bottom += 30;
    const said = lines(
      left,
      bottom,
      s.x !== null
        ? "p: the target's own draw, by the drafter's noise; the draft is kept if it is the same"
        : judged
          ? "the residual, (p − q)⁺ made a law: the replacement is drawn from it"
          : "p behind the last draft: the token for free is drawn from it",
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
    width: Math.max(left + n * column + 10, left + (s.drafts.length + 2) * (cell + 6), legend),
    height: bottom,
    body,
    label:
      `Verdict: draft ${s.drafts.map(name).join(" ")}, ${known.map(name).join(" ") || "nothing"} kept so far. ` +
      s.vocab
        .map((token, i) => `${name(token)}: p ${s.p[i].toFixed(2)}${judged ? `, q ${s.q[i].toFixed(2)}` : ""}`)
        .join("; "),
  };
}
