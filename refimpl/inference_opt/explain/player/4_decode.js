// Decoding: a row a step, a cell a token; filled where it was computed. Below, the distribution that the new token was drawn from.

const MOST_ROWS = 14;

function drawDecode({ state, trace, index, width }) {
  const told = trace.steps.map((step) => step.state.decode).filter(Boolean);
  const ways = [...new Set(told.map((each) => each.way))],
    name = (token) => (trace.labels[token] ?? String(token)).replace(" ", "␣");
  const longest = Math.max(...told.map((each) => Math.max(each.read.length, each.room))),
    left = 62,
    cell = Math.max(5, Math.min(24, Math.floor((width - left - 44) / longest))),
    pitch = 22;
  const titles = { naive: "naive: all is computed again", cached: "with a KV cache" };
  let body = "",
    y = 0;
  for (const way of ways) {
    const steps = trace.steps.flatMap((step, i) => (step.state.decode?.way === way ? [i] : []));
    const seen = steps.filter((i) => i <= index).slice(-MOST_ROWS);
    body += text(0, y + 14, titles[way], "bold");
    seen.forEach((i, row) => {
      const { read, new: fresh, room, token } = trace.steps[i].state.decode,
        top = y + 24 + row * pitch;
      body += text(left - 8, top + 14, `${fresh} new`, "small dim end num");
      for (let t = 0; t < Math.max(read.length, room); t++) {
        const there = t < read.length,
          computed = there && t >= read.length - fresh;
        body += rect(left + t * cell, top, cell - 1, 18, there ? (computed ? "" : "cached") : "free", {
          rx: 2,
          ...(computed ? painted("owed") : there ? {} : { "stroke-dasharray": "2 3" }),
        });
        if (there && cell > 12)
          body += text(left + t * cell + cell / 2, top + 13, name(read[t]), `mid small ${computed ? "onbar" : "dim"}`);
      }
      body += text(left + longest * cell + 6, top + 14, `→ ${name(token)}`, "bold");
      if (i === index) body += rect(left - 3, top - 2.5, longest * cell + 5, 23, "fresh", { rx: 4 });
    });
    y += 38 + Math.min(MOST_ROWS, steps.length) * pitch;
  }
  const { vocab, law, token, read, new: fresh, way } = state.decode,
    column = Math.min(50, (width - left) / vocab.length),
    most = Math.max(...law);
  body += text(0, y + 14, "the distribution of the next token", "bold");
  vocab.forEach((each, i) => {
    const x = left + i * column,
      high = (64 * law[i]) / most;
    body += titled(
      `${name(each)}: ${law[i].toFixed(3)}`,
      rect(x, y + 92 - high, column * 0.8, high, "", painted("p")),
      text(x + column * 0.4, y + 108, name(each), `mid ${each === token ? "bold" : "dim"}`),
    );
    if (each === token) body += rect(x - 3, y + 89 - high, column * 0.8 + 6, high + 6, "fresh", { rx: 3 });
  });
  body += line(left, y + 92, left + vocab.length * column, y + 92, "axis") + text(left - 8, y + 34, most.toFixed(2), "small dim end num");
  return {
    width: Math.max(left + longest * cell + 44, left + vocab.length * column),
    height: y + 116,
    body,
    label:
      `${titles[way]}: ${fresh} of ${plural(read.length, "token")} computed; ${name(token)} comes next, ` +
      `with probability ${law[vocab.indexOf(token)].toFixed(2)}.`,
  };
}
