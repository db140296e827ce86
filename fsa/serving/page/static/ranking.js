// The two ends of the ranking, and what the last answer moved.

const ENDS = 4;
const MOVES = 4;

const percent = (x) => `${Math.round(100 * x)} %`;

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function row(name, value, kind = "") {
  const made = element("div", "row");
  made.append(element("bdi", "name", name), element("span", `value ${kind}`, value));
  made.firstChild.title = name.slice(0, 300);
  return made;
}

/** Shows the first and the last options with their intervals. */
export function showRanking(ranking, options, lists) {
  const ends = Math.min(ENDS, Math.ceil(ranking.length / 2));
  const last = ranking.slice(ends).slice(-ENDS);
  fill(lists.first, ranking.slice(0, ends), options);
  fill(lists.last, last, options);
}

/** Bars are kept from one answer to the next, so that they move. */
function fill(list, rows, options) {
  while (list.children.length < rows.length) list.append(bar());
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(({ option, probability, low, high }, i) => {
    const item = list.children[i];
    item.replaceChild(row(options[option].short, percent(probability)), item.firstChild);
    item.dataset.option = option;
    const [interval, middle] = item.lastChild.children;
    interval.style.left = `${100 * low}%`;
    interval.style.width = `${100 * (high - low)}%`;
    middle.style.left = `${100 * probability}%`;
    item.lastChild.setAttribute("aria-label", `between ${percent(low)} and ${percent(high)}`);
  });
}

function bar() {
  const item = document.createElement("li");
  const line = element("div", "bar");
  line.setAttribute("role", "img");
  line.append(document.createElement("i"), document.createElement("b"));
  item.append(element("div", "row"), line);
  return item;
}

/** Shows which options the last answer moved most. */
export function showMoves({ moved, answers }, options, list) {
  const rows = moved.slice(0, MOVES).map(({ option, from, to }) => {
    const kind = to > from ? "up" : "down";
    const item = document.createElement("li");
    item.append(row(options[option].short, `${to > from ? "▲" : "▼"} ${percent(from)} to ${percent(to)}`, kind));
    return item;
  });
  const none = answers.length ? "None by as much as half a percent." : "Answer a question to see.";
  if (!rows.length) rows.push(element("li", "note", none));
  list.replaceChildren(...rows);
}
