// A plan at work: a bar a query over its keys, a box a piece, filled as far as it has read; its softmax; the merge.

function drawPieces({ state, width }) {
  const { pieces, piece: now, read, rows, token, joined } = state.pieces,
    queries = Math.max(...pieces.map((each) => each.token0 + each.queries)),
    left = 62,
    pitch = 34,
    unit = (Math.min(width, 760) - left - 12) / Math.max(...pieces.map((each) => each.end));
  const written = ({ state: at, queries: n }) =>
    at < 0 ? "written" : n > 1 ? `states ${at} to ${at + n - 1}` : `state ${at}`;
  let body = "";
  for (let t = 0; t < queries; t++)
    body += text(0, t * pitch + 22, `query ${t}`, t === token ? "bold accent" : "dim");
  pieces.forEach((each, i) => {
    const x = left + each.first * unit,
      w = (each.end - each.first) * unit - 2,
      y = each.token0 * pitch + 3,
      high = each.queries * pitch - 6,
      share = i < now ? 1 : i > now ? 0 : (read - each.first) / (each.end - each.first);
    const words = written(each),
      joins = joined.some(([at]) => at >= each.state && at < each.state + each.queries);
    body += titled(
      `piece ${i}: keys ${each.first} to ${each.end - 1}, ${plural(each.queries, "query").replace("querys", "queries")}; ${words}`,
      rect(x, y, w, high, "", { rx: 4, style: `fill:var(--paper);stroke:var(--r${i % 8})` }),
      rect(x, y, w * share, high, "", { rx: 4, ...tinted(i) }),
      w > wide(words, 9) + 4 ? text(x + w / 2, y + high / 2 + 4, words, "mid small") : "",
      i === now || joins ? rect(x - 2, y - 2, w + 4, high + 4, "fresh", { rx: 6 }) : "",
    );
  });
  let y = queries * pitch + 14;
  body += line(left, y - 8, left + unit * Math.max(...pieces.map((each) => each.end)), y - 8, "axis");
  body += text(left, y + 8, "keys, in the order of the text →", "small dim");
  y += 34;
  const wideRow = Math.min(width, 760) - left - 150;
  if (rows.length) {
    body += text(0, y, `piece ${now}: its rows so far`, "bold");
    const most = Math.max(...rows.map(([, l]) => l ?? 0), 1);
    rows.forEach(([m, l, shrink], r) => {
      const at = y + 12 + r * 22;
      body +=
        text(0, at + 13, `row ${r}`, "dim") +
        text(left, at + 13, `m ${m === null ? "−∞" : m.toFixed(2)}`, "num") +
        text(left + 66, at + 13, `l ${l.toFixed(2)}`, "num") +
        rect(left + 130, at + 2, (wideRow * l) / most, 14, "", tinted(now)) +
        (shrink < 1 && shrink > 0
          ? text(left + 136, at + 13, `older sums × ${shrink.toFixed(2)}`, "small")
          : "");
    });
    y += 24 + rows.length * 22;
  }
  if (joined.length) {
    body += text(0, y, `query ${token}, head 0: weights exp(lse of a state − lse of all)`, "bold");
    joined.forEach(([at, lse, weight], r) => {
      const top = y + 12 + r * 22;
      body +=
        text(0, top + 13, `state ${at}`, "dim") +
        text(left, top + 13, `lse ${lse === null ? "−∞" : lse.toFixed(2)}`, "num") +
        text(left + 66, top + 13, weight.toFixed(3), "num") +
        rect(left + 130, top + 2, wideRow * weight, 14, "", painted("owed"));
    });
    y += 24 + joined.length * 22;
  }
  return {
    width: Math.max(Math.min(width, 760), 330),
    height: y,
    body,
    label:
      `${plural(pieces.length, "piece")} of ${queries} queries; ` +
      (joined.length
        ? `query ${token} joins ${joined.map(([at, , weight]) => `state ${at} by ${weight.toFixed(2)}`).join(", ")}.`
        : `piece ${now} has read to key ${read}; ${rows.map(([m, l], r) => `row ${r}: m ${m}, l ${l}`).join("; ")}.`),
  };
}
