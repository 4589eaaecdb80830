// Scenes of memory: the page pool with its page tables, the radix tree.

const CELL = 34,
  GAP = 5;
const held = { style: "fill:var(--hair);stroke:var(--soft);stroke-dasharray:3 2" }; // taken, by no one that the trace knows

// Who has each page: {page: {kind: "free" | "cached" | "locked" | "own" | "held", colour}}
function owners(state) {
  const free = new Set(state.pool.free);
  const found = Array.from({ length: state.pool.pages }, (_, page) => ({
    kind: free.has(page) ? "free" : "held",
    who: "",
  }));
  for (const node of treeNodes(state))
    for (const page of node.pages)
      if (found[page])
        found[page] = {
          kind: node.locks ? "locked" : "cached",
          who: node.locks ? `${plural(node.locks, "lock")}` : "",
        };
  for (const request of state.schedule?.running ?? [])
    for (const page of request.table.slice(request.shared))
      if (found[page]) found[page] = { kind: "own", who: request.id, colour: request.arrival };
  return found;
}

function drawPool({ state, before, width }) {
  const now = owners(state),
    then = before?.pool ? owners(before) : null;
  const left = 66,
    columns = Math.max(4, Math.min(now.length, Math.floor((width - left) / (CELL + GAP))));
  let body = text(0, 22, "pool", "dim"),
    bottom = 0;
  const said = {
    free: "free",
    cached: "the tree's, evictable",
    locked: "the tree's, locked",
    held: "in use",
    own: "a request's own",
  };
  now.forEach((owner, page) => {
    const x = left + (page % columns) * (CELL + GAP),
      y = Math.floor(page / columns) * (CELL + GAP) + 2;
    const look = owner.kind === "own" ? tinted(owner.colour) : owner.kind === "held" ? held : {};
    const kind = owner.kind in { free: 1, cached: 1, locked: 1 } ? owner.kind : "";
    const changed = then && (then[page].kind !== owner.kind || then[page].who !== owner.who);
    body += titled(
      `page ${page}: ${owner.kind === "own" ? `${owner.who}'s own` : said[owner.kind]}`,
      rect(x, y, CELL, CELL, kind, { rx: 4, ...look }),
      text(
        x + CELL / 2,
        y + 22,
        page,
        `mid num${owner.kind === "locked" ? " light" : owner.kind === "free" ? " dim" : ""}`,
      ),
      changed ? rect(x - 2.5, y - 2.5, CELL + 5, CELL + 5, "fresh", { rx: 6 }) : "",
    );
    bottom = y + CELL;
  });
  const legend = [
    ["free", "free", {}],
    ["cached", "the tree's", {}],
    ["locked", "locked", {}],
  ];
  let x = left;
  bottom += 12;
  for (const [kind, words, look] of state.tree ? legend : legend.slice(0, 1).concat([["", "in use", held]])) {
    body += rect(x, bottom, 11, 11, kind, look) + text(x + 16, bottom + 10, words, "small dim");
    x += 24 + wide(words, 11);
  }
  bottom += 26;
  const table = drawTables(state, before, left, columns, bottom);
  const free = state.pool.free.length;
  return {
    width: left + columns * (CELL + GAP),
    height: bottom + table.height,
    body: body + table.body,
    label: `Page pool: ${free} of ${state.pool.pages} pages free. ${table.label}`,
  };
}

function drawTables(state, before, left, columns, top) {
  const then = Object.fromEntries((before?.schedule?.running ?? []).map((request) => [request.id, request]));
  const size = state.pool.page_size,
    cell = 28,
    each = Math.max(3, Math.floor((columns * (CELL + GAP)) / (cell + 4)));
  let body = "",
    y = top,
    label = "";
  for (const request of state.schedule?.running ?? []) {
    body += rect(0, y + 7, 10, 10, "", { rx: 2, ...solid(request.arrival) }) + text(16, y + 17, request.id, "bold");
    const old = before?.schedule ? (then[request.id]?.table ?? []) : request.table;
    request.table.forEach((page, i) => {
      const x = left + (i % each) * (cell + 4),
        row = y + Math.floor(i / each) * (cell + 6),
        own = i >= request.shared;
      const filled = Math.min(1, Math.max(0, request.computed / size - i));
      body += titled(
        `tokens ${i * size} to ${i * size + size - 1} of ${request.id} lie in page ${page}, ${own ? "its own" : "the tree's"}`,
        rect(x, row, cell, cell, own ? "" : "cached", { rx: 3, ...(own ? tinted(request.arrival) : {}) }),
        rect(x + 1, row + cell - 4, (cell - 2) * filled, 3, "", solid(request.arrival)),
        text(x + cell / 2, row + 18, page, "mid num"),
        old[i] === page ? "" : rect(x - 2, row - 2, cell + 4, cell + 4, "fresh", { rx: 5 }),
      );
    });
    y += Math.max(1, Math.ceil(request.table.length / each)) * (cell + 6);
    const words = `${request.computed} of ${plural(request.tokens, "token")} computed, ${request.shared} of ${plural(request.table.length, "page")} shared`;
    body += text(left, y + 8, words, "small dim");
    label += `${request.id}: page table ${request.table.join(", ") || "empty"}; ${words}. `;
    y += 22;
  }
  return { body, height: y - top, label };
}

const longestTrees = new WeakMap(); // of each trace, so that a tree does not change its layout as it grows

function drawTree({ state, before, trace, width, step }) {
  const tree = state.tree,
    name = (token) => trace.labels[token] ?? String(token);
  const letters = Object.values(trace.labels).every((words) => words.length <= 1);
  const box = (token) => (letters ? 19 : Math.max(22, wide(name(token), 13) + 8));
  const length = (node) => node.tokens.reduce((sum, token) => sum + box(token) + 2, 0);
  const longest = (nodes) => {
    const ends = [];
    for (const node of nodes) ends.push((ends[node.parent] ?? 0) + length(node) + 14); // a root's parent is null
    return ends.reduce((most, end) => Math.max(most, end), 0);
  };
  if (!longestTrees.has(trace))
    longestTrees.set(trace, Math.max(...trace.steps.map((each) => longest(each.state.tree?.nodes ?? []))));
  const natural = longestTrees.get(trace) + 40;
  const aligned = natural <= width * 1.15 || (letters && natural <= width * 1.5); // else: a child begins below its parent
  const old = new Map(
    before?.tree ? treeNodes(before).flatMap((node) => node.pages.map((page) => [page, node.locks])) : [],
  );
  const hit = new Set(step.event === "radix.match" ? step.facts.pages : []);
  const ROW = 62;
  let body = "",
    row = 0,
    right = 0;
  const placed = [], // where each node stands: {x, y, at: its end, depth, children: how many stand below it already}
    inner = new Set(tree.nodes.map((node) => node.parent));
  tree.nodes.forEach((node, n) => {
    const above = placed[node.parent],
      depth = above ? above.depth + 1 : 0;
    let x = 2;
    if (above) {
      const i = above.children++,
        beside = aligned || depth === 1; // the root has its first child beside it in either way
      if (i || !beside) row += 1;
      const from = aligned ? above.at : above.x + (depth > 1 ? 6 : 5),
        childY = row * ROW + 32;
      x = aligned ? above.at + 14 : above.x + 26;
      body +=
        aligned || (depth === 1 && !i)
          ? path(
              i
                ? `M${from} ${above.y + 12}C${from + 10} ${above.y + 12} ${from} ${childY} ${x - 2} ${childY}`
                : `M${from + (aligned ? 0 : 5)} ${above.y + 12}H${x - 2}`,
            )
          : path(`M${from} ${above.y + (depth > 1 ? 26 : 17)}V${childY}H${x - 2}`);
    } else {
      if (n) row += 1;
      if (node.namespace !== null) body += text(0, row * ROW + 14, `namespace ${node.namespace}`, "small dim");
    }
    const y = row * ROW + 20;
    let at = x;
    const pageAt = [];
    node.tokens.forEach((token, i) => {
      const w = box(token);
      if (i % tree.page_size === 0) pageAt.push([at, node.pages[i / tree.page_size]]);
      body +=
        rect(at, y, w, 24, node.locks ? "locked" : "cached", { rx: 3 }) +
        text(at + w / 2, y + 17, name(token) === " " ? "␣" : name(token), `mid${node.locks ? " light" : ""}`);
      at += w + 2;
    });
    const end = at - 2;
    const tight = tree.page_size * 20 < 30;
    pageAt.forEach(([from, page], i) => {
      const to = i + 1 < pageAt.length ? pageAt[i + 1][0] - 2 : end;
      body +=
        path(`M${from + 1} ${y + 27}v3H${to - 1}v-3`) +
        text((from + to) / 2, y + 42, tight ? page : `page ${page}`.slice(to - from < 44 ? 5 : 0), "mid small dim num");
      if (before?.tree && !old.has(page)) body += rect(from - 2, y - 3, to - from + 4, 30, "fresh", { rx: 5 });
      else if (hit.has(page))
        body += rect(from - 2, y - 3, to - from + 4, 30, "fresh", { rx: 5, "stroke-dasharray": "5 3" });
    });
    if (node.tokens.length) {
      const changed = before?.tree && node.pages.some((page) => old.has(page) && old.get(page) !== node.locks);
      if (node.locks || changed)
        body += text(x, y - 5, plural(node.locks, "lock"), `small ${changed ? "bold accent" : "dim"}`);
      if (!node.locks && !inner.has(n)) body += rect(x - 2, y - 2, end - x + 4, 28, "spare", { rx: 5 });
    } else {
      body += `<circle cx="${x + 5}" cy="${y + 12}" r="5" class="cached"/>`;
      at = x + 14;
    }
    right = Math.max(right, at);
    placed.push({ x, y, at, depth, children: 0 });
  });
  row += 1;
  if (!tree.nodes.length) body += text(0, 24, "an empty tree", "dim");
  const nodes = treeNodes(state),
    y = row * ROW + 12;
  body +=
    rect(2, y, 11, 11, "locked") +
    text(18, y + 10, "locked", "small dim") +
    rect(70, y, 11, 11, "cached") +
    text(86, y + 10, "evictable", "small dim") +
    rect(150, y, 11, 11, "spare") +
    text(166, y + 10, "a leaf that may go", "small dim");
  const spell = (node) => node.tokens.map(name).join(letters ? "" : " ");
  return {
    width: Math.max(right + 8, 290),
    height: y + 16,
    body,
    label:
      `Radix tree of ${plural(nodes.length, "node")}: ` +
      nodes
        .map((node) => `"${spell(node)}" on pages ${node.pages.join(", ")}, ${plural(node.locks, "lock")}`)
        .join("; "),
  };
}
