// The map of people, and the regions that one person is believed to be in.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 400;
const DURATION = 420;

/** Returns a new SVG element. */
export function svg(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

/** Draws people, axes and regions into an <svg>; regions move when they change. */
export class PeopleMap {
  constructor(root, map) {
    this.root = root;
    [this.corner, this.size] = map.bounds;
    root.replaceChildren(svg("rect", { class: "frame", width: SIZE, height: SIZE, rx: 12 }));
    const clip = svg("clipPath", { id: "map-clip" });
    clip.append(svg("rect", { width: SIZE, height: SIZE, rx: 12 }));
    this.inside = svg("g", { "clip-path": "url(#map-clip)" });
    root.append(clip, this.inside);
    this.regions = svg("g");
    const people = svg("g");
    this.marks = svg("g");
    this.inside.append(this.regions, people, this.marks);
    for (const [point, group] of map.people) {
      const [x, y] = this.place(point);
      const colour = group === null ? "" : ` g${group % 4}`;
      people.append(svg("circle", { class: `person${colour}`, cx: x, cy: y, r: 3 }));
    }
    this.layers = {
      them: new Regions(this, "them", "them-is"),
      you: new Regions(this, "", "you-are"),
    };
    this.ends(map.axes);
  }

  /** Returns where a point of the map is in the picture. */
  place([x, y]) {
    const [left, bottom] = this.corner;
    return [((x - left) / this.size[0]) * SIZE, SIZE - ((y - bottom) / this.size[1]) * SIZE];
  }

  /** Writes at each end of the axes which option is wanted most there. */
  ends(axes) {
    const middle = SIZE / 2;
    const places = [
      [SIZE - 10, middle, "end"], [10, middle, "start"], [middle, 20, "middle"], [middle, SIZE - 11, "middle"],
    ];
    axes.flatMap(({ high, low }) => [high, low]).forEach((name, i) => {
      if (!name) return;
      const [x, y, anchor] = places[i];
      const arrow = ["→", "←", "↑", "↓"][i];
      const words = i === 0 ? `${cut(name)} ${arrow}` : `${arrow} ${cut(name)}`;
      this.root.append(svg("text", { class: "toward", x, y, "text-anchor": anchor }, words));
    });
  }

  /** Moves the regions of "you" or "them" to new contours. */
  show(who, { contours, mean }) {
    this.layers[who].show(contours, mean);
  }

  hide(who) {
    this.layers[who].show([[], []], null);
  }
}

/** The loops of one person's contours. */
class Regions {
  constructor(map, kind, marker) {
    this.map = map;
    this.kind = kind;
    this.group = svg("g");
    this.marker = svg("circle", { class: marker, r: 6, visibility: "hidden" });
    map.regions.append(this.group);
    map.marks.append(this.marker);
    this.now = null;
  }

  show(contours, mean) {
    const next = { loops: [...contours].reverse(), mean };
    const before = this.now;
    this.now = next;
    cancelAnimationFrame(this.frame);
    if (!before || !mean || matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.draw(next.loops, mean);
      return;
    }
    const tracks = next.loops.map((loops, i) => matched(before.loops[i], loops));
    const start = performance.now();
    const step = (time) => {
      const t = Math.min(1, Math.max(0, (time - start) / DURATION));
      const s = 1 - (1 - t) ** 3;
      const loops = tracks.map((pairs) => pairs.map(([a, b]) => a.map((p, i) => mixed(p, b[i], s))));
      this.draw(t < 1 ? loops : next.loops, before.mean ? mixed(before.mean, mean, s) : mean);
      if (t < 1) this.frame = requestAnimationFrame(step);
    };
    step(start);
  }

  draw(shares, mean) {
    const paths = shares.map((loops, i) => {
      const d = loops.map((loop) => `M${loop.map((p) => this.map.place(p).map((x) => x.toFixed(1))).join("L")}Z`);
      const inner = i === shares.length - 1 ? " inner" : "";
      return svg("path", { class: `region ${this.kind}${inner}`, d: d.join(""), "data-loops": loops.length });
    });
    this.group.replaceChildren(...paths);
    this.marker.setAttribute("visibility", mean ? "visible" : "hidden");
    if (!mean) return;
    const [x, y] = this.map.place(mean);
    this.marker.setAttribute("cx", x.toFixed(1));
    this.marker.setAttribute("cy", y.toFixed(1));
  }
}

/** Pairs loops with the nearest of those before; others grow from, or shrink to, a point. */
function matched(before, after) {
  const left = [...before];
  const pairs = after.map((loop) => {
    const distances = left.map((other) => distance(centre(other), centre(loop)));
    const nearest = distances.indexOf(Math.min(...distances));
    if (nearest < 0) return [loop.map(() => centre(loop)), loop];
    return [left.splice(nearest, 1)[0], loop];
  });
  return [...pairs, ...left.map((loop) => [loop, loop.map(() => centre(loop))])];
}

const mixed = (a, b, t) => [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t];
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const centre = (loop) => [0, 1].map((axis) => loop.reduce((sum, p) => sum + p[axis], 0) / loop.length);
const cut = (name) => (name.length > 24 ? `${name.slice(0, 22).trimEnd()}…` : name);
