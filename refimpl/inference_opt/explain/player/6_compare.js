// What a reader's code gave, beside what is right: the input, then a row for each thing that is compared.

const MOST_LINES = 6; // of one cell; all of it stands in the cell's title
const LEADING = 16;

function drawComparison({ state, width }) {
  const { given, rows, broken } = state.comparison,
    left = 22,
    gap = 14;
  const lettered = (words) => Math.max(0, ...words.map((word) => wide(word, 12))) + 1;
  const cell = (x, y, words, w, kind = "code") => {
    const written = wrapped(words, w, 12, MOST_LINES);
    const body = written.map((row, i) => text(x, y + i * LEADING, row, kind)).join("");
    return { body: titled(words, body), height: written.length * LEADING };
  };
  let body = "",
    y = 14;
  const bold = 14.5; // letters of 13 that are bold take as much room as these
  const heading = wrapped(broken, width - left, bold);
  for (const row of heading) {
    body += (y === 14 ? text(2, y, "✗", "bad bold") : "") + text(left, y, row, "bold");
    y += 19;
  }
  y += 12;
  if (given.length) {
    const names = Math.min(lettered(given.map(([name]) => name)), 0.4 * width);
    body += text(left, y, "the input", "small dim");
    y += 18;
    for (const [name, words] of given) {
      const parts = [
        cell(left, y, name, names, "code dim"),
        cell(left + names + gap, y, words, width - left - names - gap),
      ];
      body += parts.map((part) => part.body).join("");
      y += Math.max(...parts.map((part) => part.height)) + 3;
    }
    y += 14;
  }
  // The columns are as wide as what they hold, if there is room; what is compared is named in a third at most.
  const columns = [0, 1, 2].map((k) => lettered(["right", ...rows.map((row) => row[k])]));
  const room = width - left - 2 * gap - 8,
    names = Math.min(columns[0], room / 3),
    came = Math.min(columns[1], Math.max((room - names) / 2, room - names - columns[2]));
  const widths = [names, came, Math.min(columns[2], room - names - came)],
    starts = [left, left + names + gap, left + names + came + 2 * gap],
    end = starts[2] + widths[2] + 8;
  body += text(starts[1], y, "came", "small dim") + text(starts[2], y, "right", "small dim");
  y += 8;
  for (const [what, cameOut, right, same] of rows) {
    const parts = [what, cameOut, right].map((words, k) => cell(starts[k], y + 19, words, widths[k], k ? "code" : "code dim"));
    const high = Math.max(...parts.map((part) => part.height)) + 12;
    body +=
      (same ? line(0, y + high, end, y + high, "hair") : rect(0, y + 1, end, high - 2, "wrong", { rx: 4 })) +
      text(4, y + 19, same ? "✓" : "✗", same ? "good" : "bad bold") +
      parts.map((part) => part.body).join("");
    y += high;
  }
  return {
    width: Math.max(width * 0.5, end, ...heading.map((row) => left + wide(row, bold))),
    height: y + 6,
    body,
    label:
      `${broken}. Input: ${given.map(([name, words]) => `${name} = ${words}`).join(", ") || "none"}. ` +
      rows.map(([what, cameOut, right, same]) => `${what}: ${same ? `${cameOut}, right` : `${cameOut} came, ${right} is right`}`).join("; "),
  };
}
