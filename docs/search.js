// How the search ranks, and where its excerpts come from (docs/excerpts.py writes TEXTS: {page: [[anchor, heading, text]]}).
// Sphinx puts this file in front of its own search, which asks `Scorer`.

const plain = (text) => text.toLowerCase().replace(/[-_\s]+/g, " ").trim();
const QUERY = plain(new URLSearchParams(location.search).get("q") ?? "");
// A chapter explains, the glossary says in a line; what only uses a word comes after.
const PLACES = { "chapters/": 20, "docs/glossary": 14, "notebooks/": 8, "docs/architecture": 4, "docs/notation": 4 };
const occurrences = (text, words) => plain(text).split(words).length - 1;

// How often a section has the query: as it stands if any section has it so, else its words.
function hits([, heading, text]) {
  const all = Object.values(TEXTS).flat();
  hits.words ??= all.some(([, , each]) => occurrences(each, QUERY)) ? [QUERY] : QUERY.split(" ");
  return Math.min(...hits.words.map((words) => occurrences(text, words) + 3 * occurrences(heading, words)));
}

var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  // A page found as a whole leads to the section that has the query most often. Earlier chapters explain, later ones use.
  score(result) {
    const [page, title, anchor, , score, , kind] = result;
    const place = Object.entries(PLACES).find(([start]) => page.startsWith(start))?.[1] ?? 0;
    if (kind === "object") return score;
    const sections = (TEXTS[page] ?? []).map((section) => [hits(section), section]);
    const [most, best] = sections.reduce((a, b) => (b[0] > a[0] ? b : a), [0, null]);
    if (kind === "text" && best && best !== TEXTS[page][0]) [result[1], result[2]] = [`${title} > ${best[1]}`, `#${best[0]}`];
    const total = sections.reduce((sum, [n]) => sum + n, 0),
      order = Number(page.match(/^chapters\/(\d+)/)?.[1] ?? 0);
    const base = kind === "text" ? Scorer.term : score; // a word of the query in any heading is not what it asks for
    return base + place + (total && 3 + Math.log2(total)) - order / 3;
  },
};

// An excerpt is made of a page that Sphinx's search fetches: this is that page.
window.fetch = async (address) => {
  const page = Object.keys(TEXTS).find((name) => address.endsWith(`${name}.html`));
  const main = document.createElement("div");
  main.setAttribute("role", "main");
  for (const [anchor, , text] of TEXTS[page] ?? [])
    main.append(Object.assign(document.createElement("section"), { id: anchor, textContent: `${text} ` }));
  return { text: async () => main.outerHTML };
};
