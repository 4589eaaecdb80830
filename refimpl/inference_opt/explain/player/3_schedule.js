// The schedule: a lane a request, a column a step of the engine. What has not run yet is outlined.

function lanes(trace, index) {
  const order = new Map(),
    columns = [[]],
    marks = [];
  const lane = (id) => order.get(id) ?? order.set(id, order.size).get(id);
  for (let i = 0; i <= index; i++) {
    const { event, facts } = trace.steps[i];
    if (event === "schedule.arrive") lane(facts.id);
    if (event === "schedule.prefill" || event === "schedule.decode")
      columns.at(-1).push({
        id: facts.id,
        count: facts.count,
        prompt: event === "schedule.prefill",
        plan: true,
        fresh: i === index,
      });
    if (event === "schedule.draft") columns.at(-1).find((cell) => cell.id === facts.id).drafts = facts.gamma;
    if (event === "schedule.preempt" || event === "schedule.leave" || event === "schedule.refuse") {
      const column = columns.length - 1;
      if (event === "schedule.preempt") columns[column] = columns[column].filter((cell) => cell.id !== facts.id);
      marks.push({ id: facts.id, column, event: event.slice(9), fresh: i === index });
    }
    if (event === "engine.step") {
      columns[columns.length - 1] = facts.outputs.map((out) => ({
        id: out.id,
        count: out.count,
        prompt: out.prompt,
        drafts: out.drafted.length,
        tokens: out.tokens,
        fresh: i === index,
      }));
      columns.push([]);
    }
  }
  return { order: [...order.keys()], columns, marks };
}

function drawSchedule({ state, trace, index, width }) {
  const { order, columns, marks } = lanes(trace, index),
    there = new Map(everyone(state).map((request) => [request.id, request]));
  const running = new Set(state.schedule.running.map((request) => request.id));
  const left = 118,
    cell = 36,
    high = 28,
    fit = Math.max(4, Math.floor((width - left) / cell));
  const first = Math.max(0, columns.length - fit),
    shown = columns.slice(first);
  const name = (token) => trace.labels[token] ?? token;
  let body = "",
    label = "";
  order.forEach((id, row) => {
    const y = row * (high + 8) + 22,
      request = there.get(id);
    const doing = !request ? "done" : running.has(id) ? (request.decoding ? "decodes" : "prefill") : "waits";
    body +=
      rect(0, y + 8, 10, 10, "", { rx: 2, ...solid(row) }) +
      text(16, y + 18, id, "bold") +
      text(left - 12, y + 18, doing, "small dim end");
    body += line(left, y + high + 4, left + shown.length * cell, y + high + 4, "hair");
    label += `${id} ${doing}${request ? `, ${request.computed} of ${request.tokens} tokens computed` : ""}. `;
  });
  shown.forEach((column, i) => {
    const x = left + i * cell;
    body += text(x + cell / 2, 12, first + i + 1, `mid small num ${i === shown.length - 1 ? "bold" : "dim"}`);
    for (const chunk of column) {
      const row = order.indexOf(chunk.id),
        y = row * (high + 8) + 22;
      const look = chunk.prompt ? solid(row) : tinted(row);
      const words = `${chunk.id}: ${plural(chunk.count, chunk.prompt ? "prompt token" : "token")}${chunk.drafts ? ` and ${plural(chunk.drafts, "draft")}` : ""}`;
      body += titled(
        chunk.tokens?.length ? `${words}; out: ${chunk.tokens.map(name).join(" ")}` : words,
        rect(x + 2, y, cell - 4, high, "", {
          rx: 4,
          ...look,
          ...(chunk.plan ? { "stroke-dasharray": "4 3", "fill-opacity": 0.55 } : {}),
        }),
        text(
          x + cell / 2,
          y + 18,
          chunk.prompt ? chunk.count : chunk.drafts ? `1+${chunk.drafts}` : 1,
          `mid small num${chunk.prompt && !chunk.plan ? " light" : ""}`,
        ),
        chunk.fresh ? rect(x - 0.5, y - 2.5, cell + 1, high + 5, "fresh", { rx: 6 }) : "",
      );
    }
  });
  for (const mark of marks) {
    if (mark.column < first) continue;
    const row = order.indexOf(mark.id),
      x = left + (mark.column - first) * cell + cell / 2,
      y = row * (high + 8) + 36;
    if (mark.event === "preempt")
      body += titled(
        `${mark.id} is preempted`,
        path(`M${x - 6} ${y - 6}l12 12m0-12l-12 12`, "wire", { style: "stroke:var(--bad);stroke-width:2.5" }),
      );
    if (mark.event === "leave")
      body += titled(`${mark.id} is done`, rect(x + cell / 2 - 5, y - 14, 4, high, "", painted("ink")));
    if (mark.event === "refuse") body += titled(`${mark.id} must wait`, text(x, y + 4, "…", "mid bold bad"));
  }
  let y = order.length * (high + 8) + 30;
  const used = columns.at(-1).reduce((sum, chunk) => sum + chunk.count + (chunk.drafts ?? 0), 0),
    budget = state.schedule.token_budget;
  body +=
    rect(0, y, 11, 11, "", solid(0)) +
    text(16, y + 10, "prompt tokens", "small dim") +
    rect(100, y, 11, 11, "", tinted(0)) +
    text(116, y + 10, "decode", "small dim") +
    text(164, y + 10, "dashed: planned", "small dim");
  const signs = { preempt: "✗ preempted", refuse: "… must wait", leave: "▌ done" };
  body += text(0, y + 28, [...new Set(marks.map((mark) => signs[mark.event]))].join("   "), "small dim");
  if (marks.length) y += 16;
  if (used) body += text(0, y + 30, `this step: ${used} of ${plural(budget, "token")} of its budget`, "small");
  return {
    width: Math.max(left + shown.length * cell + 6, 280),
    height: y + 36,
    body,
    label: `Schedule after ${plural(columns.length - 1, "step")}. ${label}`,
  };
}
