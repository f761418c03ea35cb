// Draws CHARTS: drag to zoom in, double-click to zoom out, point to read values.
"use strict";
const NS = "http://www.w3.org/2000/svg", H = 260, LEFT = 64, BOTTOM = 34, TOP = 10, RIGHT = 12;
function el(name, attributes, parent, text) {
  const node = document.createElementNS(NS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}
function html(name, parent, text) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}
function ticks(low, high, most) {
  const rough = (high - low) / most, power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough), out = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) out.push(i * step);
  return out;
}
function number(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}
function bounds(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null) { if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}
function nearest(xs, at) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < at) low = mid; else high = mid; }
  return Math.abs(xs[low] - at) <= Math.abs(xs[high] - at) ? low : high;
}
function build(chart, root) {
  html("h2", root, chart.title);
  const legend = html("p", root);
  legend.className = "legend";
  for (const line of chart.lines) if (line.kind !== "faint") {
    const item = html("span", legend, line.name), mark = document.createElement("i");
    mark.style.background = line.color;
    if (line.kind === "dashed") mark.style.opacity = .5;
    item.prepend(mark);
  }
  if (chart.restarts.length) html("span", legend, "| a restart").className = "restart";
  const holder = html("div", root);
  const said = html("p", root, "");
  said.className = "said";
  const whole = bounds(chart.lines.flatMap(line => line.x));
  let view = whole;
  function draw() {
    holder.textContent = "";
    const W = Math.max(300, holder.clientWidth), [x0, x1] = view[0] < view[1] ? view : [view[0] - .5, view[0] + .5];
    const inside = chart.lines.flatMap(line => line.y.filter((v, i) => line.x[i] >= x0 && line.x[i] <= x1));
    let [y0, y1] = bounds(inside.concat(chart.levels.map(level => level[1])));
    if (!isFinite(y0)) [y0, y1] = [0, 1];
    if (chart.zero) y0 = Math.min(0, y0);
    const room = (y1 - y0 || Math.abs(y1) || 1) * .06;
    y1 += room; if (!chart.zero) y0 -= room;
    const X = v => LEFT + (v - x0) / (x1 - x0) * (W - LEFT - RIGHT), Y = v => TOP + (y1 - v) / (y1 - y0) * (H - TOP - BOTTOM);
    const svg = el("svg", { width: W, height: H, viewBox: `0 0 ${W} ${H}`, role: "img" }, holder);
    el("title", {}, svg, chart.title);
    const id = "c" + Math.random().toString(36).slice(2);
    el("rect", { x: LEFT, y: TOP, width: W - LEFT - RIGHT, height: H - TOP - BOTTOM }, el("clipPath", { id }, el("defs", {}, svg)));
    for (const t of ticks(y0, y1, 5)) {
      el("line", { x1: LEFT, x2: W - RIGHT, y1: Y(t), y2: Y(t), stroke: "#e6e6e6" }, svg);
      el("text", { x: LEFT - 6, y: Y(t) + 4, "text-anchor": "end" }, svg, number(t));
    }
    for (const t of ticks(x0, x1, W < 500 ? 4 : 8)) el("text", { x: X(t), y: H - BOTTOM + 16, "text-anchor": "middle" }, svg, number(t));
    el("text", { x: (LEFT + W - RIGHT) / 2, y: H - 3, "text-anchor": "middle" }, svg, chart.x);
    const body = el("g", { "clip-path": `url(#${id})` }, svg);
    for (const at of chart.restarts) el("line", { x1: X(at), x2: X(at), y1: TOP, y2: H - BOTTOM, stroke: "#999", "stroke-dasharray": "2 3" }, body);
    for (const [name, value] of chart.levels) {
      el("line", { x1: LEFT, x2: W - RIGHT, y1: Y(value), y2: Y(value), stroke: "#777", "stroke-dasharray": "6 4" }, body);
      el("text", { x: W - RIGHT - 2, y: Y(value) - 4, "text-anchor": "end" }, body, name);
    }
    for (const line of chart.lines) {
      let path = "", pen = "M";
      line.x.forEach((x, i) => {
        const y = line.y[i];
        if (y === null) { pen = "M"; return; }
        path += `${pen}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`; pen = "L";
        if (line.kind === "dots") el("circle", { cx: X(x), cy: Y(y), r: 3, fill: line.color }, body);
      });
      const style = { d: path, fill: "none", stroke: line.color, "stroke-width": line.kind === "faint" ? .8 : 1.8, "stroke-linejoin": "round" };
      if (line.kind === "faint") style["stroke-opacity"] = .35;
      if (line.kind === "dashed") style["stroke-dasharray"] = "6 4";
      el("path", style, body);
    }
    const cursor = el("line", { y1: TOP, y2: H - BOTTOM, stroke: "#333", visibility: "hidden" }, svg);
    const chosen = el("rect", { y: TOP, height: H - TOP - BOTTOM, fill: "#4c78a8", "fill-opacity": .15, visibility: "hidden" }, svg);
    let from = null;
    const at = event => {
      const box = svg.getBoundingClientRect(), px = Math.min(W - RIGHT, Math.max(LEFT, (event.clientX - box.left) * W / box.width));
      return [px, x0 + (px - LEFT) / (W - LEFT - RIGHT) * (x1 - x0)];
    };
    svg.onpointermove = event => {
      const [px, x] = at(event);
      cursor.setAttribute("x1", px); cursor.setAttribute("x2", px); cursor.setAttribute("visibility", "visible");
      const read = chart.lines.filter(line => line.kind !== "dashed" || chart.lines.length === 1).map(line => {
        const i = nearest(line.x, x);
        return `${line.kind === "faint" ? line.name + " (raw)" : line.name} ${line.y[i] === null ? "not finite" : number(line.y[i])}`;
      });
      said.textContent = `${chart.x} ${number(Math.round(x * 100) / 100)}: ${read.join(", ")}`;
      if (from !== null) { chosen.setAttribute("x", Math.min(from[0], px)); chosen.setAttribute("width", Math.abs(px - from[0])); chosen.setAttribute("visibility", "visible"); }
    };
    svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); said.textContent = ""; };
    svg.onpointerdown = event => { from = at(event); };
    svg.onpointerup = event => {
      const to = at(event);
      if (from !== null && Math.abs(to[0] - from[0]) > 8) { view = [Math.min(from[1], to[1]), Math.max(from[1], to[1])]; draw(); }
      from = null; chosen.setAttribute("visibility", "hidden");
    };
    svg.ondblclick = () => { view = whole; draw(); };
  }
  draw();
  new ResizeObserver(() => { if (Math.abs(holder.clientWidth - holder.firstChild.getAttribute("width")) > 1) draw(); }).observe(holder);
}
for (const chart of CHARTS) build(chart, html("section", document.getElementById("charts")));
