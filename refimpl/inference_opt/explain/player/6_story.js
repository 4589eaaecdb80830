// The parts of a long recording, read off its events: [{at, name}], the step that each begins with and what it is called.

const LONG = 15; // steps; a shorter recording needs no parts
const FEW = 4;

const brief = (words) => (words.length > 64 ? `${words.slice(0, 20)} … ${words.slice(-40)}` : words);

// A list of [at, who, what]: turns of the same kind that nothing parts are one, and its name tells all of them.
function joinedTurns(turns) {
  const parts = [];
  for (const [at, who, what, group] of turns) {
    const one = parts.at(-1);
    if (one && one.what === what && one.group === group) one.who.push(who);
    else parts.push({ at, who: [who], what, group });
  }
  return parts.map(({ at, who, what }) => ({
    at,
    name: `${who.join(", ")} ${who.length > 1 ? what.replace("is ", "are ").replace("arrives", "arrive") : what}`,
  }));
}

// Requests that come, are let in later, lose their pages, leave. Where little happens: the engine's steps.
function scheduleStory(steps) {
  const turns = [],
    ends = [], // of the engine's steps
    here = new Map(); // when each request came, or came back, in steps of the engine
  steps.forEach(({ event, facts }, at) => {
    const turn = (what) => turns.push([at, facts.id, what, ends.length]);
    if (event === "engine.step") ends.push(at);
    if (event === "schedule.arrive") (here.set(facts.id, ends.length), turn("arrives"));
    if (event === "schedule.admit" && here.get(facts.id) !== ends.length) turn("is let in");
    if (event === "schedule.preempt") (here.set(facts.id, -1), turn("is preempted"));
    if (event === "schedule.leave") turn("is done");
  });
  const story = joinedTurns(turns);
  if (story.length >= FEW) return story;
  return ends.map((_, n) => ({ at: n ? ends[n - 1] + 1 : 0, name: `engine step ${n + 1}` }));
}

function story(trace) {
  const { steps, labels } = trace,
    spell = (tokens) => tokens.map((token) => labels[token] ?? token).join("");
  // A part wherever the name of a step is another than that of the step before; a step without a name goes on with it.
  const named = (name) => {
    const parts = [];
    steps.forEach((step, at) => {
      const words = name(step);
      if (words && words !== parts.at(-1)?.name) parts.push({ at, name: words });
    });
    return parts;
  };
  const has = (event) => steps.some((step) => step.event === event);
  if (steps.length < LONG) return [];
  if (has("figure.panel")) return named((step) => step.event === "figure.panel" && brief(step.text));
  if (has("schedule.arrive")) return scheduleStory(steps);
  if (has("radix.match")) return named((step) => step.event === "radix.match" && brief(step.text.match(/“.*?”/)?.[0] ?? step.text));
  return named(({ event, state: { law, pieces } }) => {
    if (law) return law.texts ? "whole texts" : law.prefix.length ? `after “${spell(law.prefix)}”` : "the first draft";
    if (pieces) return event === "kernel.merge" ? "states are merged" : `piece ${pieces.piece}`;
  });
}
