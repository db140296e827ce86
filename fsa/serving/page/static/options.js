// Shows options: Markdown that the server has made safe, or numbers as a drawing.

import { svg } from "./map.js";

// Characters up to which an option is a name, shown large in the middle.
const SHORT = 60;

/** Shows an option in an element. */
export function showOption(element, option, ranges) {
  element.classList.toggle("short", Boolean(option.numbers) || option.text.length <= SHORT);
  if (option.numbers) element.replaceChildren(drawing(option.numbers, ranges), numbers(option));
  else element.innerHTML = option.html;
  element.scrollTop = 0;
}

function numbers(option) {
  const line = document.createElement("p");
  line.textContent = option.text;
  return line;
}

/** Draws one number as a place on a line, several as bars. */
function drawing(values, ranges) {
  return values.length === 1 ? place(values[0], ranges[0]) : bars(values, ranges);
}

function place(value, [low, high]) {
  const root = svg("svg", { viewBox: "0 0 320 60", "aria-hidden": "true" });
  const at = 20 + (280 * (value - low)) / (high - low || 1);
  root.append(
    svg("rect", { x: 20, y: 26, width: 280, height: 8, rx: 4, fill: "var(--line)" }),
    svg("rect", { x: 20, y: 26, width: Math.max(0, at - 20), height: 8, rx: 4, fill: "var(--accent)", opacity: 0.4 }),
    svg("circle", { cx: at, cy: 30, r: 11, fill: "var(--accent)" }),
  );
  return root;
}

function bars(values, ranges) {
  const width = 320 / values.length;
  const root = svg("svg", { viewBox: "0 0 320 110", "aria-hidden": "true" });
  values.forEach((value, i) => {
    const [low, high] = ranges[i];
    const height = 6 + (94 * (value - low)) / (high - low || 1);
    root.append(svg("rect", {
      x: i * width + width * 0.18, y: 105 - height, width: width * 0.64, height, rx: Math.min(4, width / 4), fill: "var(--accent)",
    }));
  });
  return root;
}

/** Makes two elements scroll alike: each to the same share of its length. */
export function scrollAlike(first, second) {
  let leading = null;
  for (const [one, other] of [[first, second], [second, first]]) {
    one.addEventListener("scroll", () => {
      if (leading === other) {
        leading = null;
        return;
      }
      const room = one.scrollHeight - one.clientHeight;
      const wanted = room ? (one.scrollTop / room) * (other.scrollHeight - other.clientHeight) : 0;
      if (Math.abs(other.scrollTop - wanted) < 1) return;
      leading = one;
      other.scrollTop = wanted;
    });
  }
}
