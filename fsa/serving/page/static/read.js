// A prompt answered for nobody, for the person, and for the opposite, side by side.

import * as api from "./api.js";
import { showDifferences } from "./differences.js";

const $ = (id) => document.getElementById(id);

// The slider goes from the person, 0, to the opposite, 1.
const COLUMNS = [
  { title: "For nobody in particular", at: null },
  { title: "For you", at: 0 },
  { title: "For your opposite", at: 1 },
];

let running = null;
let other = null;

/** Adds somebody else, whose z is known, to the answers that follow. */
export function compareWith(title, z) {
  other = { title, z };
}

/** Begins to answer prompts. */
export function startReading() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    answer();
  });
  $("between").addEventListener("input", () => {
    $("between-value").textContent = nameOf(Number($("between").value) / 100);
  });
  $("between").addEventListener("change", () => {
    if ($("question").value.trim()) answer();
  });
}

function nameOf(at) {
  if (at === 0) return "you";
  if (at === 1) return "your opposite";
  return `${Math.round(100 * at)} % to your opposite`;
}

function columns() {
  const at = Number($("between").value) / 100;
  const between = at > 0 && at < 1 ? [{ title: `Between: ${nameOf(at)}`, at }] : [];
  return [COLUMNS[0], COLUMNS[1], ...between, COLUMNS[2], ...(other ? [other] : [])];
}

/** Writes all answers at once; each shows what is there as it comes. */
async function answer() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const prompt = $("question").value;
  performance.mark("asked");
  const wanted = columns();
  const shown = wanted.map(panel);
  $("answers").replaceChildren(...shown.map(({ root }) => root));
  // The person's own text first: the server begins them in this order.
  const begun = [];
  for (const i of [1, ...wanted.keys()]) {
    const { at, z } = wanted[i];
    begun[i] ??= stream({ prompt, at, z }, shown[i], signal);
  }
  const texts = await Promise.all(begun);
  if (signal.aborted) return;
  const you = texts[1];
  const opposite = texts[wanted.indexOf(COLUMNS[2])];
  texts.forEach((text, i) => showDifferences(shown[i].text, text, i === 1 ? opposite : you));
}

async function stream(body, { root, text }, signal) {
  let all = "";
  root.classList.add("busy");
  try {
    await api.write(body, (piece) => {
      if (!all) performance.measure("first words", "asked");
      all += piece;
      text.textContent = all;
    }, signal);
  } catch (error) {
    if (signal.aborted) return all;
    if (!(error instanceof api.Refused)) throw error;
    text.textContent = error.message;
  }
  root.classList.remove("busy");
  return all;
}

function panel({ title }) {
  const root = document.createElement("article");
  const heading = document.createElement("h3");
  const text = document.createElement("div");
  root.className = "answer";
  text.className = "text";
  text.dir = "auto";
  heading.textContent = title;
  root.append(heading, text);
  return { root, text };
}
