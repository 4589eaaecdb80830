// Scenes of chance: one verdict on a draft; the law of a rule, path by path.

function drawSpeculation({ state, before, trace, width }) {
  const s = state.speculation, name = (token) => (trace.labels[token] ?? String(token)).replace(" ", "␣");
  const cell = 40, left = 64, known = s.emitted.slice(0, s.at);
  const rejected = s.kept === false || (s.x === null && s.at < s.drafts.length);
  let body = text(0, 24, "draft", "dim");
  s.drafts.forEach((token, i) => {
    const x = left + i * (cell + 6), fate = i < known.length || (i === s.at && s.kept) ? "kept" : i === s.at && rejected ? "rejected" : rejected ? "never looked at" : "to be judged";
    const look = fate === "kept" ? painted("kept", "var(--good)") : { style: `fill:var(--paper);stroke:var(--${fate === "rejected" ? "bad" : "line"})` };
    body += titled(`draft ${i}, ${name(token)}: ${fate}`,
      rect(x, 4, cell, 30, "", { rx: 5, "stroke-width": 1.5, ...look, ...(fate === "never looked at" ? { "stroke-dasharray": "4 3" } : {}) }),
      text(x + cell / 2, 24, name(token), `mid${fate === "never looked at" || fate === "to be judged" ? " dim" : ""}`),
      fate === "rejected" ? line(x + 6, 30, x + cell - 6, 8, "", { style: "stroke:var(--bad);stroke-width:1.5;stroke-opacity:.6" }) : "",
      text(x + cell / 2, 48, fate === "kept" ? "✓" : fate === "rejected" ? "✗" : "", `mid ${fate === "kept" ? "good" : "bad"}`),
      i === s.at && s.x !== null ? rect(x - 3, 1, cell + 6, 36, "fresh", { rx: 7 }) : "");
  });
  if (s.drawn !== null) {
    const x = left + s.drafts.length * (cell + 6) + 22;
    body += text(x - 16, 24, "→", "dim") + rect(x, 4, cell, 30, "", { rx: 5, ...painted("owed") }) + text(x + cell / 2, 24, name(s.drawn), "mid light bold") +
      rect(x - 3, 1, cell + 6, 36, "fresh", { rx: 7 }) + text(x + cell / 2, 48, "drawn", "mid small dim");
  }
  const top = 74, high = 150, n = s.vocab.length, column = Math.min(76, (width - left - 10) / n), most = Math.max(...s.p, ...s.q, 0.01) * 1.08;
  const y = (share) => top + high - (share / most) * high, base = top + high;
  body += line(left, base, left + n * column, base, "axis") + text(left - 8, base + 4, "0", "small dim end") + text(left - 8, y(most / 1.08) + 4, (most / 1.08).toFixed(2), "small dim end num");
  const judged = s.x !== null || rejected;
  s.vocab.forEach((token, i) => {
    const x = left + i * column + column * 0.1, w = column * 0.8, p = s.p[i], q = judged ? s.q[i] : 0, both = judged ? Math.min(p, q) : 0;
    body += titled(`${name(token)}: p ${p.toFixed(3)}${judged ? `, q ${q.toFixed(3)}, min ${both.toFixed(3)}` : ""}`,
      rect(x, y(both), w, base - y(both), "", painted("kept")), rect(x, y(p), w, y(both) - y(p), "", painted("owed")),
      rect(x, y(Math.max(q, both)), w, y(both) - y(Math.max(q, both)), "", painted("much")),
      line(x - 3, y(p), x + w + 3, y(p), "", { style: "stroke:var(--p);stroke-width:3" }),
      judged ? line(x - 3, y(q), x + w + 3, y(q), "", { style: "stroke:var(--q);stroke-width:3" }) : "",
      text(x + w / 2, base + 17, name(token), token === s.x || token === s.drawn ? "mid bold" : "mid dim"));
    if (token === s.x) {
      const h = y(s.u * q);
      body += line(x - 6, h, x + w + 6, h, "", { style: "stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3" }) +
        `<circle cx="${x + w / 2}" cy="${h}" r="5" style="fill:var(--${s.kept ? "good" : "bad"});stroke:var(--paper);stroke-width:1.5"/>` +
        text(Math.min(x + w + 8, left + n * column - 46), h - 6, "u · q", "small bold");
    }
  });
  let legend = left;
  const legendY = base + 30;
  for (const [colour, words] of judged ? [["p", "p, target"], ["q", "q, draft"], ["kept", "min: kept"], ["owed", "(p − q)⁺: owed"], ["much", "(q − p)⁺: rejected"]] : [["p", "p, target"]]) {
    if (legend + 26 + wide(words, 11) > Math.max(width, 320)) continue;
    body += rect(legend, legendY, 11, 11, "", painted(colour)) + text(legend + 15, legendY + 10, words, "small dim");
    legend += 28 + wide(words, 11);
  }
  let bottom = legendY + 16;
  if (s.drawn !== null) {
    bottom += 30;
    body += text(left, bottom, judged ? "the residual, (p − q)⁺ made a law: the replacement is drawn from it" : "p behind the last draft: the token for free is drawn from it", "small");
    s.vocab.forEach((token, i) => {
      const x = left + i * column + column * 0.1, w = column * 0.8, h = 60 * s.rest[i];
      body += titled(`${name(token)}: ${s.rest[i].toFixed(3)}`, rect(x, bottom + 78 - h, w, h, "", painted("owed")), text(x + w / 2, bottom + 95, name(token), token === s.drawn ? "mid bold" : "mid dim"));
      if (token === s.drawn) body += rect(x - 3, bottom + 75 - h, w + 6, h + 6, "fresh", { rx: 3 });
    });
    body += line(left, bottom + 78, left + n * column, bottom + 78, "axis");
    bottom += 102;
  }
  return {
    width: Math.max(left + n * column + 10, left + (s.drafts.length + 2) * (cell + 6), legend), height: bottom, body,
    label: `Verdict: draft ${s.drafts.map(name).join(" ")}, ${known.map(name).join(" ") || "nothing"} kept so far. ` +
      s.vocab.map((token, i) => `${name(token)}: p ${s.p[i].toFixed(2)}${judged ? `, q ${s.q[i].toFixed(2)}` : ""}`).join("; "),
  };
}

// Tokens as bars: what has come out so far, and a tick where the target's law is.
function drawBars(rows, x, y, width) {
  let body = "";
  const most = Math.max(...rows.flatMap(([, mine, its]) => [value(mine), value(its)]), 1e-9), label = Math.max(24, ...rows.map(([words]) => wide(words) + 10));
  const long = Math.min(420, Math.max(60, width - label - 120));
  for (const [words, mine, its] of rows) {
    const its_x = x + label + (value(its) / most) * long, off = Math.abs(value(mine) - value(its)) > 1e-12;
    body += titled(`${words}: ${mine} so far, ${its} in the target's law`,
      text(x, y + 14, words, "bold"), rect(x + label, y + 2, long, 15, "", painted("panel")), rect(x + label, y + 2, (value(mine) / most) * long, 15, "", painted(value(mine) > value(its) + 1e-12 ? "bad" : "owed")),
      line(its_x, y - 1, its_x, y + 20, "", { style: "stroke:var(--ink);stroke-width:2.5" }),
      text(x + label + long + 10, y + 14, off ? `${mine} of ${its}` : `${mine} ✓`, off ? "small num dim" : "small num good"));
    y += 25;
  }
  return { body, y, width: x + label + long + 120 };
}

function drawLaw({ state, trace, index, width }) {
  const law = state.law, name = (token) => (trace.labels[token] ?? String(token)), spell = (tokens) => tokens.map(name).join("");
  if (law.texts) {
    const bars = drawBars(law.texts.map(([text, mine, its]) => [spell(text), mine, its]), 0, 26, width);
    return { width: bars.width, height: bars.y + 4, body: text(0, 12, "probability of a text; the tick is the target's", "small dim") + bars.body,
      label: law.texts.map(([text, mine, its]) => `${spell(text)}: ${mine}, target ${its}`).join("; ") };
  }
  const same = (step) => step.event === "law.path" && spell(step.state.law.prefix) === spell(law.prefix);
  let first = index, end = index;
  while (first > 0 && same(trace.steps[first - 1])) first--;
  while (end + 1 < trace.steps.length && same(trace.steps[end + 1])) end++;
  const paths = [];
  for (let i = first; i <= end; i++) {
    const { path: way } = trace.steps[i].state.law;
    const names = way.turns.map(([turn], k) => (turn === true ? "kept" : turn === false ? "rejected" : typeof way.turns[k + 1]?.[0] === "boolean" ? `draft ${name(turn)}` : `draw ${name(turn)}`));
    paths.push({ names, shares: way.turns.map(([, share]) => share), out: spell(way.emitted), probability: way.probability, at: i });
  }
  paths.sort((a, b) => (a.names.join("\n") < b.names.join("\n") ? -1 : 1));
  const longest = Math.max(...paths.map((way) => way.names.length)), top = 34, high = 25, column = Math.max(78, Math.min(118, (width - 130) / longest));
  const nodes = new Map();
  paths.forEach((way, row) => {
    for (let depth = 0; depth <= way.names.length; depth++) {
      const key = way.names.slice(0, depth).join("\n"), node = nodes.get(key) ?? { rows: [], depth, seen: false, now: false };
      node.rows.push(row), (node.seen ||= way.at <= index), (node.now ||= way.at === index);
      nodes.set(key, Object.assign(node, { words: way.names[depth - 1], share: way.shares[depth - 1], parent: way.names.slice(0, depth - 1).join("\n") }));
    }
  });
  const height = (node) => top + ((node.rows[0] + node.rows.at(-1)) / 2) * high;
  let body = "", over = "";
  for (const node of nodes.values()) {
    if (!node.depth) continue;
    const from = nodes.get(node.parent), x = (node.depth - 1) * column, y1 = height(from), y2 = height(node);
    const colour = node.words === "kept" ? "good" : node.words === "rejected" ? "bad" : "soft";
    const wire = path(`M${x} ${y1}C${x + 16} ${y1} ${x + 4} ${y2} ${x + 22} ${y2}H${x + column}`, "", {
      style: `fill:none;stroke:var(--${node.now ? "fresh" : node.seen ? colour : "hair"});stroke-width:${node.now ? 3 : 1.5}` });
    if (node.now) over += wire;
    else body += wire;
    if (node.seen) over += text(x + 25, y2 - 4, node.words + (node.share === "1" ? "" : ` ${node.share}`), `small ${colour === "soft" ? "" : colour}`);
  }
  const x = longest * column;
  body += text(x + 8, 12, "out", "small dim") + text(x + 52, 12, "probability", "small dim") + (law.prefix.length ? text(0, 12, `behind “${spell(law.prefix)}”`, "small dim") : "");
  paths.forEach((way, row) => {
    const y = top + row * high;
    over += line(way.names.length * column, y, x, y, "hair", { "stroke-dasharray": "2 3" });
    if (way.at <= index) over += text(x + 8, y + 4, way.out, "bold") + text(x + 52, y + 4, way.probability, "num");
  });
  const y = top + paths.length * high + 8;
  const bars = drawBars(law.first.map((mine, token) => [name(token), mine, law.truth[token]]), 0, y + 24, width);
  body += text(0, y + 10, `first token that comes out, so far; the tick is the target's (${law.total} of all paths seen)`, "small dim");
  return { width: Math.max(x + 120, bars.width), height: bars.y + 4, body: body + over + bars.body,
    label: `${plural(paths.filter((way) => way.at <= index).length, "path")} of ${paths.length}. ` + law.first.map((mine, token) => `first token ${name(token)}: ${mine}, target ${law.truth[token]}`).join("; ") };
}
