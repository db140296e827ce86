// The page: shows a question, sends the answer, and draws what follows from it.

import * as api from "./api.js";
import { PeopleMap } from "./map.js";
import { scrollAlike, showOption } from "./options.js";
import { showMoves, showRanking } from "./ranking.js";
import { compareWith, startReading } from "./read.js";

const $ = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".option")];
const contents = cards.map((card) => card.querySelector(".content"));

const THUMB =
  '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="M7 10.5v9.5H4.2a.7.7 0 0 1-.7-.7v-8.1a.7.7 0 0 1 .7-.7H7Zm0 0 4-7.2c1.500 0 2.600 1.200 2.400 2.700L13 9.500h5.600a1.900 1.900 0 0 1 1.850 2.330l-1.500 6.600A2 2 0 0 1 17 20H7"/></svg>';

let session, map, state;
let busy = false;
// What happened on this page since the last answer that is kept: pairs that are skipped.
const skipped = [];

const asked = () => ({ skipped, random: $("random").checked });

/** Sends something, shows what comes back, and takes no other answer meanwhile. */
async function send(request, said = "") {
  if (busy) return;
  busy = true;
  performance.mark("sent");
  try {
    show(await request());
    say(said);
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    say(error instanceof api.TokenNeeded ? "The server asks for another token: load this page again." : error.message, true);
  } finally {
    busy = false;
  }
}

function say(text, bad = false) {
  $("message").textContent = text || "\u00a0";
  $("message").classList.toggle("bad", bad);
}

function show(next) {
  state = next;
  showQuestion();
  showCertainty();
  showRanking(state.ranking, session.options, { first: $("first"), last: $("last") });
  showMoves(state, session.options, $("moved"));
  if (map) map.show("you", state.place);
  const some = state.answers.length > 0;
  $("undo").disabled = !some && !skipped.length;
  $("take-table").disabled = !some;
  document.documentElement.dataset.answers = state.answers.length;
  requestAnimationFrame(() => performance.measure("answer to picture", { start: lastMark() }));
}

const lastMark = () => performance.getEntriesByName("sent").at(-1)?.startTime ?? 0;

function showQuestion() {
  const { question } = state;
  const count = state.answers.length;
  $("number").textContent = `Question ${count + 1}`;
  $("options").hidden = !question;
  $("done").hidden = Boolean(question);
  for (const id of ["tie", "skip"]) $(id).disabled = !question || (id === "tie" && !session.takes.tie);
  cards.forEach((card) => card.classList.remove("picked"));
  if (!question) return;
  const options = question.map((i) => session.options[i]);
  $("prompt").textContent = options[0].prompt || "Which do you prefer?";
  options.forEach((option, i) => showOption(contents[i], option, session.ranges));
  cards.forEach((card, i) => (card.dataset.option = question[i]));
}

function showCertainty() {
  const { certainty } = state;
  if (!certainty) {
    $("certainty").textContent = "This model does not tell how sure it is.";
    return;
  }
  // Half of all pairs are guessed by chance, so the meter begins there.
  const share = (x) => Math.max(0, Math.min(1, 2 * x - 1));
  $("meter").style.transform = `scaleX(${share(certainty.now)})`;
  $("meter-before").style.transform = `scaleX(${share(certainty.before)})`;
  const percent = (x) => `${Math.round(100 * x)} %`;
  $("certainty").textContent =
    `It expects to predict ${percent(certainty.now)} of your choices; ${percent(certainty.before)} before you began.`;
}

function pick(i) {
  if (!state?.question || busy) return;
  cards[i].classList.add("picked");
  const { question } = state;
  send(() => api.answer("chosen", [question[i], question[1 - i]], asked()));
}

function tie() {
  if (!state?.question || !session.takes.tie) return;
  send(() => api.answer("tied", state.question, asked()));
}

function skip() {
  if (!state?.question || busy) return;
  skipped.push(state.question);
  send(() => api.view(asked()), "Skipped. Nothing was recorded.");
}

function undo() {
  if (busy || $("undo").disabled) return;
  if (state.answers.length) send(() => api.undo(asked()), "The last answer is undone.");
  else {
    skipped.pop();
    send(() => api.view(asked()));
  }
}

function vote(i, kind) {
  const option = state.question[i];
  const word = kind === "liked" ? "like" : "do not like";
  send(() => api.answer(kind, [option], asked()), `Noted: you ${word} ${session.options[option].short}.`);
}

function listen() {
  cards.forEach((card, i) => {
    card.querySelector(".pick").addEventListener("click", () => pick(i));
    contents[i].addEventListener("click", () => {
      // A text that is being selected is not chosen.
      if (getSelection().isCollapsed) pick(i);
    });
    card.querySelector(".thumbs").hidden = !session.takes.vote;
    for (const thumb of card.querySelectorAll(".thumb")) {
      thumb.innerHTML = THUMB;
      thumb.addEventListener("click", () => vote(i, thumb.dataset.vote));
    }
  });
  scrollAlike(...contents);
  $("tie").addEventListener("click", tie);
  $("skip").addEventListener("click", skip);
  $("undo").addEventListener("click", undo);
  $("random").addEventListener("change", () => send(() => api.view(asked())));
  const keys = { 1: () => pick(0), 2: () => pick(1), t: tie, s: skip, backspace: undo };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("textarea, input:not([type=checkbox])");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const act = keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function offerFiles() {
  const numbers = session.options.some((option) => option.numbers);
  const files = {
    "take-table": `choices.${numbers ? "jsonl" : "csv"}`,
    "take-report": "report.md",
    "take-picture": "report.png",
    "take-adapter": "adapter",
  };
  for (const [id, what] of Object.entries(files)) $(id).addEventListener("click", () => save(what));
  chosenFile("load", load);
  chosenFile("other", compare);
  $("other").closest(".card").hidden = !session.map;
}

/** Shows an error where it is seen, beside the question. */
async function orSay(act) {
  try {
    await act();
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    say(error.message, true);
    $("message").scrollIntoView({ block: "center" });
  }
}

const save = (what) => orSay(async () => {
  const { blob, name } = await api.file(what);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});

const load = (file) => orSay(async () => {
  const { answers } = await api.load(file);
  await send(() => api.view(asked()), `Loaded ${answers} answers of ${file.name}.`);
});

function chosenFile(id, use) {
  $(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) use(file);
    event.target.value = "";
  });
}

const compare = (file) => orSay(async () => {
  const { place, answers, z } = await api.place(file);
  map.show("them", place);
  compareWith(`For ${file.name}`, z);
  $("other-text").textContent = `${file.name}: ${answers} answers`;
  showLegend(true);
  $("watch").scrollIntoView();
});

function showLegend(other = false) {
  const groups = session.map.groups.length <= 6 ? session.map.groups : [];
  const entries = [["you", "you"], ...groups.map((name, i) => [`g${i % 4}`, name])];
  if (session.map.people.length && !groups.length) entries.push(["", "other people"]);
  if (other) entries.push(["them", "the person compared"]);
  $("legend").replaceChildren(
    ...entries.map(([kind, name]) => {
      const item = document.createElement("li");
      const dot = document.createElement("i");
      dot.className = kind;
      item.append(dot, name);
      return item;
    }),
  );
}

/** Shows the form for a token in place of everything else. */
function askForToken(why) {
  document.body.classList.add("signed-out");
  $("token-message").textContent = why;
  $("token").value = "";
  $("token").focus();
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  // A header holds no spaces and nothing but ASCII.
  api.useToken(encodeURI($("token").value.trim()));
  start();
});

async function start() {
  try {
    session = await api.session();
  } catch (error) {
    if (error instanceof api.TokenNeeded) askForToken(error.message);
    else say(error.message, true);
    return;
  }
  document.body.classList.remove("signed-out");
  $("title").textContent = session.title;
  document.title = `${session.title}: which do you prefer?`;
  $("attribution").textContent = session.attribution;
  $("attribution").hidden = !session.attribution;
  const prompts = new Set(session.options.map((option) => option.prompt));
  document.body.classList.toggle("one-prompt", prompts.size === 1);
  for (const part of document.querySelectorAll("[data-policy]")) part.hidden = !session.policy;
  for (const part of document.querySelectorAll("[data-writes]")) part.hidden = !session.writes;
  $("random").checked = !session.can_choose;
  $("random").disabled = !session.can_choose;
  $("tie").hidden = !session.takes.tie;
  $("watch").hidden = !session.map;
  if (session.map) {
    map = new PeopleMap($("map"), session.map);
    showLegend();
    $("dots").hidden = !session.map.people.length;
  }
  listen();
  offerFiles();
  if (session.writes) startReading();
  await send(() => api.view(asked()));
  document.documentElement.dataset.ready = "yes";
}

start();
