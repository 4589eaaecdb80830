// Scenes of attention: keys found through a page table; latents kept, expanded or absorbed.

function drawAttention({ state, width }) {
  const { table, end, new: fresh, page_size: size, pages, weights } = state.attention;
  const left = 84,
    box = 30,
    slot = Math.max(13, Math.min(30, Math.floor((width - left - 10) / (table.length * size)) - 1));
  const columns = Math.max(4, Math.floor((width - left) / (box + 4))),
    rows = Math.ceil(pages / columns);
  const place = new Map(table.map((page, i) => [page, i]));
  const poolY = 2,
    tableY = poolY + rows * (box + 4) + 44,
    keysY = tableY + box + 26;
  const pageX = (i) => left + i * (size * (slot + 1) + 5),
    middle = (i) => pageX(i) + (size * (slot + 1) - 1) / 2;
  let body =
      text(0, poolY + 20, "pool", "dim") +
      text(0, tableY + 20, "page table", "dim") +
      text(0, keysY + 16, "keys", "dim"),
    wires = "";
  for (let page = 0; page < pages; page++) {
    const x = left + (page % columns) * (box + 4),
      y = poolY + Math.floor(page / columns) * (box + 4),
      i = place.get(page);
    body += titled(
      `page ${page}${i === undefined ? "" : `, entry ${i} of the table`}`,
      rect(x, y, box, box, i === undefined ? "free" : "", { rx: 4, ...(i === undefined ? {} : tinted(i)) }),
      text(x + box / 2, y + 20, page, `mid num${i === undefined ? " dim" : ""}`),
    );
    if (i !== undefined)
      wires += path(
        `M${x + box / 2} ${y + box}C${x + box / 2} ${tableY - 18} ${middle(i)} ${y + box + 18} ${middle(i)} ${tableY - 1}`,
        "",
        { style: `fill:none;stroke:var(--r${i % 8});stroke-width:1.5` },
      );
  }
  table.forEach((page, i) => {
    const x = middle(i) - box / 2;
    body += rect(x, tableY, box, box, "", { rx: 4, ...tinted(i) }) + text(middle(i), tableY + 20, page, "mid num bold");
    body += path(`M${pageX(i)} ${keysY - 5}v-4H${pageX(i) + size * (slot + 1) - 1}v4`);
    for (let offset = 0; offset < size; offset++) {
      const t = i * size + offset,
        sx = pageX(i) + offset * (slot + 1);
      body += titled(
        t < end ? `token ${t}: page ${page}, offset ${offset}` : `page ${page}, offset ${offset}: empty`,
        rect(sx, keysY, slot, 22, t < end ? "" : "free", {
          rx: 2,
          ...(t < end ? tinted(i) : { "stroke-dasharray": "3 3" }),
        }),
        t < end ? text(sx + slot / 2, keysY + 15, t, "mid small num") : "",
        t < end && t >= end - fresh ? rect(sx - 1, keysY - 1.5, slot + 2, 25, "fresh", { rx: 3 }) : "",
      );
    }
  });
  let y = keysY + 46;
  const most = Math.max(0.01, ...weights.flat());
  weights.forEach((head, h) => {
    body +=
      text(0, y + 22, `head ${h}`, "dim") +
      line(left, y + 30, pageX(table.length - 1) + size * (slot + 1), y + 30, "axis");
    head.forEach((weight, t) => {
      const i = Math.floor(t / size),
        high = Math.max(1, (28 * weight) / most);
      body += titled(
        `head ${h} gives token ${t} the weight ${weight.toFixed(3)}`,
        rect(pageX(i) + (t % size) * (slot + 1) + 1, y + 30 - high, slot - 2, high, "", solid(i)),
      );
    });
    y += 40;
  });
  const said = lines(
    left,
    y + 4,
    `weights of the last new token, the highest bar is ${most.toFixed(2)}; ringed: written in this step`,
    "small dim",
    Math.max(width, 320),
  );
  if (weights.length) ((body += said.body), (y = said.y));
  return {
    width: Math.max(pageX(table.length), left + Math.min(pages, columns) * (box + 4)),
    height: y + 10,
    body: wires + body,
    label:
      `Attention over ${plural(end, "key")} in pages ${table.join(", ")}, ${fresh} of them new. ` +
      weights.map((head, h) => `Head ${h} weighs token ${head.indexOf(Math.max(...head))} most`).join("; "),
  };
}

function drawLatent({ state, trace, index, width }) {
  const { form, queries, keys, rows, widths: w } = state.mla;
  const fresh =
    form === "kept"
      ? keys - (trace.steps.slice(0, index).findLast((step) => step.state.mla?.form !== "kept")?.state.mla.keys ?? 0)
      : queries;
  const kept = w.latent + w.rope,
    expanded = w.kv_heads * (w.key + w.rope + w.value),
    query = w.heads * kept;
  const most = Math.max(expanded, query) + 2 * w.heads,
    unit = Math.min(11, (width - 24) / most),
    high = 26,
    gap = 2 * unit;
  const colours = { c: "locked", r: "r0", k: "r2", v: "r1" };
  let body = "",
    y = 0;
  const bars = (title, note, groups, on) => {
    let x = 0;
    const said = lines(0, y + 30, note, "small dim", width);
    body += text(0, y + 13, title, on ? "bold" : "dim") + said.body;
    y = said.y - 30;
    for (const group of groups) {
      for (const [kind, numbers, name] of group) {
        body += titled(
          `${name}: ${plural(numbers, "number")}`,
          rect(x, y + 38, numbers * unit - 1, high, "", {
            rx: 2,
            style: `fill:var(--${colours[kind]});fill-opacity:${on ? 1 : 0.28}`,
          }),
          numbers * unit > wide(name, 11) + 2
            ? text(x + (numbers * unit) / 2, y + 55, name, `mid small ${on ? "onbar" : ""}`)
            : "",
        );
        x += numbers * unit;
      }
      x += gap;
    }
    y += 84;
  };
  bars(
    "kept of a token, in every form",
    `one latent c of ${w.latent} and one rotated key of ${w.rope}: ${kept} numbers`,
    [
      [
        ["c", w.latent, "c"],
        ["r", w.rope, "k_R"],
      ],
    ],
    true,
  );
  bars(
    "explicit: a token's keys and values",
    `W_UK c, k_R and W_UV c of ${plural(w.kv_heads, "head")}: ${expanded} numbers, made for every key`,
    Array.from({ length: w.kv_heads }, () => [
      ["k", w.key, "k"],
      ["r", w.rope, "k_R"],
      ["v", w.value, "v"],
    ]),
    form === "explicit",
  );
  bars(
    "absorbed: a token's query",
    `W_UKᵀ q and q_R of ${plural(w.heads, "head")}: ${query} numbers, made for every query only`,
    Array.from({ length: w.heads }, () => [
      ["c", w.latent, "W_UKᵀq"],
      ["r", w.rope, "q_R"],
    ]),
    form === "absorbed",
  );
  const cell = Math.max(9, Math.min(24, (width - 80) / kept)),
    top = Math.max(1e-9, ...rows.flat().map(Math.abs));
  body +=
    text(0, y + 13, `in the cache: ${plural(keys, "token")}`, "bold") +
    text(44, y + 32, "latent c", "small dim") +
    text(44 + w.latent * cell + 4, y + 32, "k_R", "small dim");
  y += 38;
  rows.forEach((row, i) => {
    const at = keys - rows.length + i;
    body += text(36, y + 11, at, "small num dim end");
    row.forEach((number, j) => {
      const share = Math.round(Math.min(1, Math.abs(number) / top) * 100);
      body += titled(
        `token ${at}, number ${j}: ${number}`,
        rect(44 + j * cell + (j >= w.latent ? 4 : 0), y, cell - 1, 13, "", {
          style: `fill:color-mix(in srgb, var(--${number < 0 ? "hot" : "cold"}) ${share}%, var(--panel))`,
        }),
      );
    });
    if (i >= rows.length - fresh)
      body += rect(42.5, y - 1, kept * cell + 6, 15, "fresh", { rx: 2, "stroke-width": 1.5 });
    y += 14.5;
  });
  return {
    width: Math.max(most * unit, 44 + kept * cell + 10, 300),
    height: y + 6,
    body,
    label: `Latent attention, ${form}: ${plural(keys, "token")} kept with ${kept} numbers each; explicit keys and values would be ${expanded}; ${plural(queries, "query token")} now.`,
  };
}
