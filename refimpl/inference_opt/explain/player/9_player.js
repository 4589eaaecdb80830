// The player: a trace, a step's number, and ways to change it. `render({ model, el })` is what anywidget calls;
// a page calls it with a model of its own (see `mount`).

const VERSION = 2;
const SCENES = {
  decode: ["what goes through the model", drawDecode],
  schedule: ["schedule", drawSchedule],
  pool: ["page pool and page tables", drawPool],
  tree: ["radix tree", drawTree],
  attention: ["attention over pages", drawAttention],
  pieces: ["the plan of pieces", drawPieces],
  mla: ["latent attention", drawLatent],
  speculation: ["acceptance", drawSpeculation],
  law: ["the distribution, path by path", drawLaw],
  comparison: ["what came, and what is right", drawComparison],
};

function readTrace(given) {
  let trace = given;
  if (typeof given === "string") {
    try {
      trace = JSON.parse(given);
    } catch (error) {
      throw new Error(`This trace is not whole (was the file truncated?): ${error.message}`);
    }
  }
  if (trace?.format !== "inference-opt trace") throw new Error("This is not a trace of inference-opt.");
  if (trace.version !== VERSION)
    throw new Error(`This trace has version ${trace.version}; this player shows version ${VERSION}. Record it again.`);
  if (!trace.steps?.length) throw new Error("This trace has no steps.");
  return trace;
}

export function render({ model, el }) {
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  root.innerHTML = `<style>${CSS}</style><section class="player" tabindex="0" role="group"></section>`;
  const player = root.querySelector(".player");
  const alone = model.get("alone") === true; // it has the page to itself: the address names the step
  let stop = () => null;
  const start = () => {
    const was = stop();
    try {
      stop = play(player, readTrace(model.get("trace")), alone, was, model.get("at"));
    } catch (error) {
      player.innerHTML = `<p class="trouble" role="alert">${esc(error.message)}</p>`;
      stop = () => was;
    }
  };
  start();
  model.on?.("change:trace", start);
  return () => stop();
}

// A page that has no widget machinery: the trace stands in a script tag.
export function mount(el, trace, alone, at) {
  const given = { trace, alone, at };
  return render({ model: { get: (name) => given[name] }, el });
}

export default { render };
