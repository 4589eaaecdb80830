// A question before a step is shown: answers to choose from, or a number to be typed. Each answer has its reason.

function drawQuestion({ ask, choices }) {
  const key = (name) => `<kbd>${name}</kbd>`;
  const answers = choices
    ? choices.map(([words], i) => `<button type="button" data-answer="${i}">${esc(words)}</button>`).join("")
    : `<input type="text" inputmode="numeric" autocomplete="off" size="6" aria-label="your answer, a number">
       <button type="button" data-do="check">check</button>`;
  const pass = TOUCH.matches
    ? "A swipe to the left shows the answer."
    : choices
      ? `${key("→")} or ${key("Enter")} shows the answer.`
      : `Type a number, then ${key("Enter")}. ${key("→")} shows the answer.`;
  return `<p>${esc(ask)}</p><div class="answers">${answers}</div><div class="said"></div><p class="pass">${pass}</p>`;
}

// What is said of an answer: {right, words, why}. `given`: the place of a choice or a text; undefined asks to be told.
function judged({ choices, right, number, why, beliefs }, given) {
  if (choices) {
    const at = given ?? right;
    return { right: at === right, words: choices[at][0], why: choices[at][1] };
  }
  const words = String(given ?? number).trim();
  if (!/^\d+$/.test(words)) return { right: false, words: words || "nothing", why: "The answer is a whole number: type its digits." };
  const typed = Number(words),
    belief = beliefs.find(([wrong]) => wrong === typed);
  if (typed === number) return { right: true, words: String(number), why };
  return { right: false, words: String(typed), why: belief?.[1] ?? "Look at the picture once more, and try again." };
}

const drawVerdict = ({ right, words, why }, told) =>
  `<p class="verdict ${told ? "" : right ? "yes" : "no"}">${told ? "" : right ? "Right: " : "Not so: "}${esc(words)}</p>` +
  `<p class="why">${esc(why)}</p>`;
