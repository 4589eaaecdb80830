// The distribution of what a rule emits, path by path; then of texts, next to the target's.

// Tokens as bars: what has come out so far, and a tick where the target's distribution is.
function drawBars(rows, x, y, width) {
  let body = "";
  const most = Math.max(...rows.flatMap(([, mine, its]) => [value(mine), value(its)]), 1e-9),
    label = Math.max(24, ...rows.map(([words]) => wide(words) + 10));
  const long = Math.min(420, Math.max(60, width - label - 120));
  for (const [words, mine, its] of rows) {
    const its_x = x + label + (value(its) / most) * long,
      off = Math.abs(value(mine) - value(its)) > 1e-12;
    body += titled(
      `${words}: ${mine} so far, ${its} in the target's distribution`,
      text(x, y + 14, words, "bold"),
      rect(x + label, y + 2, long, 15, "", painted("panel")),
      rect(
        x + label,
        y + 2,
        (value(mine) / most) * long,
        15,
        "",
        painted(value(mine) > value(its) + 1e-12 ? "bad" : "owed"),
      ),
      line(its_x, y - 1, its_x, y + 20, "", { style: "stroke:var(--ink);stroke-width:2.5" }),
      text(
        x + label + long + 10,
        y + 14,
        off ? `${mine} of ${its}` : `${mine} ✓`,
        off ? "small num dim" : "small num good",
      ),
    );
    y += 25;
  }
  return { body, y, width: x + label + long + 120 };
}

function drawLaw({ state, trace, index, width }) {
  const law = state.law,
    name = (token) => trace.labels[token] ?? String(token),
    spell = (tokens) => tokens.map(name).join("");
  if (law.texts) {
    const bars = drawBars(
      law.texts.map(([text, mine, its]) => [spell(text), mine, its]),
      0,
      26,
      width,
    );
    return {
      width: bars.width,
      height: bars.y + 4,
      body: text(0, 12, "probability of a text; the tick is the target's", "small dim") + bars.body,
      label: law.texts.map(([text, mine, its]) => `${spell(text)}: ${mine}, target ${its}`).join("; "),
    };
  }
  const same = (step) => step.event === "law.path" && spell(step.state.law.prefix) === spell(law.prefix);
  let first = index,
    end = index;
  while (first > 0 && same(trace.steps[first - 1])) first--;
  while (end + 1 < trace.steps.length && same(trace.steps[end + 1])) end++;
  const paths = [];
  for (let i = first; i <= end; i++) {
    const { path: way } = trace.steps[i].state.law;
    const names = way.turns.map(([turn], k) =>
      turn === true
        ? "kept"
        : turn === false
          ? "rejected"
          : typeof way.turns[k + 1]?.[0] === "boolean"
            ? `draft ${name(turn)}`
            : `draw ${name(turn)}`,
    );
    paths.push({
      names,
      shares: way.turns.map(([, share]) => share),
      out: spell(way.emitted),
      probability: way.probability,
      at: i,
    });
  }
  paths.sort((a, b) => (a.names.join("\n") < b.names.join("\n") ? -1 : 1));
  const longest = Math.max(...paths.map((way) => way.names.length)),
    top = 34,
    high = 25,
    column = Math.max(78, Math.min(118, (width - 130) / longest));
  const nodes = new Map();
  paths.forEach((way, row) => {
    for (let depth = 0; depth <= way.names.length; depth++) {
      const key = way.names.slice(0, depth).join("\n"),
        node = nodes.get(key) ?? { rows: [], depth, seen: false, now: false };
      (node.rows.push(row), (node.seen ||= way.at <= index), (node.now ||= way.at === index));
      nodes.set(
        key,
        Object.assign(node, {
          words: way.names[depth - 1],
          share: way.shares[depth - 1],
          parent: way.names.slice(0, depth - 1).join("\n"),
        }),
      );
    }
  });
  const height = (node) => top + ((node.rows[0] + node.rows.at(-1)) / 2) * high;
  let body = "",
    over = "";
  for (const node of nodes.values()) {
    if (!node.depth) continue;
    const from = nodes.get(node.parent),
      x = (node.depth - 1) * column,
      y1 = height(from),
      y2 = height(node);
    const colour = node.words === "kept" ? "good" : node.words === "rejected" ? "bad" : "soft";
    const wire = path(`M${x} ${y1}C${x + 16} ${y1} ${x + 4} ${y2} ${x + 22} ${y2}H${x + column}`, "", {
      style: `fill:none;stroke:var(--${node.now ? "fresh" : node.seen ? colour : "hair"});stroke-width:${node.now ? 3 : 1.5}`,
    });
    if (node.now) over += wire;
    else body += wire;
    if (node.seen)
      over += text(
        x + 25,
        y2 - 4,
        node.words + (node.share === "1" ? "" : ` ${node.share}`),
        `small ${colour === "soft" ? "" : colour}`,
      );
  }
  const x = longest * column;
  body +=
    text(x + 8, 12, "out", "small dim") +
    text(x + 52, 12, "probability", "small dim") +
    (law.prefix.length ? text(0, 12, `after “${spell(law.prefix)}”`, "small dim") : "");
  paths.forEach((way, row) => {
    const y = top + row * high;
    over += line(way.names.length * column, y, x, y, "hair", { "stroke-dasharray": "2 3" });
    if (way.at <= index) over += text(x + 8, y + 4, way.out, "bold") + text(x + 52, y + 4, way.probability, "num");
  });
  const said = lines(
      0,
      top + paths.length * high + 18,
      `first token that comes out, so far; the tick is the target's (${law.total} of all paths seen)`,
      "small dim",
      width,
    ),
    y = said.y - 10;
  body += said.body;
  const bars = drawBars(
    law.first.map((mine, token) => [name(token), mine, law.truth[token]]),
    0,
    y + 24,
    width,
  );
  return {
    width: Math.max(x + 120, bars.width),
    height: bars.y + 4,
    body: body + over + bars.body,
    label:
      `${plural(paths.filter((way) => way.at <= index).length, "path")} of ${paths.length}. ` +
      law.first.map((mine, token) => `first token ${name(token)}: ${mine}, target ${law.truth[token]}`).join("; "),
  };
}
