"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const root = document.documentElement, tip = document.getElementById("tip");
const WIDTH = Number(root.dataset.width), SVG = document.querySelector("svg")?.namespaceURI;

// The theme: the system's, until the reader chooses.
const remembered = () => { try { return localStorage.getItem("aquila2-theme"); } catch { return null; } };
const system = matchMedia("(prefers-color-scheme: dark)");
function dress() { root.dataset.theme = remembered() || (system.matches ? "dark" : "light"); }
document.getElementById("theme").addEventListener("click", () => {
  const next = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("aquila2-theme", next); } catch { /* a page without storage forgets */ }
  root.dataset.theme = next;
});
system.addEventListener("change", dress);
dress();

function shown(value, percent) {
  if (percent) return (Math.abs(value) < 0.01 ? Number((100 * value).toPrecision(3)) : (100 * value).toFixed(1)) + " %";
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(3);
  return Number(value.toPrecision(5)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}

// The row of a series that lies nearest to a place on the screen, by bisection.
function nearest(rows, place) {
  let low = 0, high = rows.length - 1;
  const at = (i) => rows[i][rows[i].length - 2];
  while (high - low > 1) { const middle = (low + high) >> 1; if (at(middle) <= place) low = middle; else high = middle; }
  return Math.abs(at(low) - place) <= Math.abs(at(high) - place) ? rows[low] : rows[high];
}

function line(label, value, colour) {
  const row = document.createElement("div"), name = document.createElement("span"), text = document.createElement("b");
  name.textContent = label; text.textContent = value;
  if (colour !== undefined) name.style.borderLeft = "3px solid var(--c" + colour + ")", name.style.paddingLeft = "6px";
  row.append(name, text);
  return row;
}

function draw(figure, place) {
  const chart = charts[figure.dataset.chart], cursor = figure.querySelector(".cursor");
  cursor.replaceChildren();
  const nodes = [], found = chart.series.map((series) => [series, nearest(series.rows, place)]);
  if (!found.length) return nodes;
  const newest = found.map(([, row]) => row).reduce((a, b) =>
    Math.abs(a[a.length - 2] - place) <= Math.abs(b[b.length - 2] - place) ? a : b);
  const rule = document.createElementNS(SVG, "path"), x = newest[newest.length - 2];
  const box = figure.querySelector("svg").viewBox.baseVal;
  rule.setAttribute("d", "M" + x + " 14V" + (box.height - 42));
  cursor.append(rule);
  nodes.push(line(chart.x_label, newest[0].toLocaleString("en-US")));
  for (const [series, row] of found) {
    const dot = document.createElementNS(SVG, "circle");
    dot.setAttribute("cx", row[row.length - 2]); dot.setAttribute("cy", row[row.length - 1]);
    dot.setAttribute("r", 3.4); dot.setAttribute("class", "dot c" + series.colour);
    cursor.append(dot);
    let value = shown(row[1], chart.percent);
    if (row.length > 4) value += series.interval ? " ± " + shown(Math.max(row[3] - row[1], row[1] - row[2]), chart.percent)
      : " (" + shown(row[2], chart.percent) + " to " + shown(row[3], chart.percent) + ")";
    nodes.push(line(series.name, value, series.colour));
  }
  for (const [, at, , text] of chart.marks) {
    if (Math.abs(at - place) <= 6) {
      const event = document.createElement("span");
      event.className = "event"; event.textContent = text; nodes.push(event);
    }
  }
  return nodes;
}

const figures = [...document.querySelectorAll("figure[data-chart]")];
// All charts have the same x axis where they show steps, so the rule moves in all of them.
function point(figure, place, x, y) {
  for (const other of figures) if (other !== figure) draw(other, place);
  tip.replaceChildren(...draw(figure, place));
  tip.hidden = !tip.childNodes.length;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = Math.max(4, x + 16 + width > innerWidth ? x - width - 16 : x + 16) + "px";
  tip.style.top = Math.max(4, Math.min(y + 12, innerHeight - height - 4)) + "px";
  figure.dataset.place = place;
}
function leave() {
  tip.hidden = true;
  for (const figure of figures) figure.querySelector(".cursor").replaceChildren();
}
for (const figure of figures) {
  const picture = figure.querySelector("svg");
  figure.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    point(figure, ((event.clientX - box.left) / box.width) * WIDTH, event.clientX, event.clientY);
  });
  figure.addEventListener("pointerleave", leave);
  figure.addEventListener("blur", leave);
  figure.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -8, ArrowRight: 8 }[event.key];
    if (!move) return;
    event.preventDefault();
    const box = picture.getBoundingClientRect();
    const place = Math.min(WIDTH, Math.max(0, Number(figure.dataset.place || WIDTH / 2) + move));
    point(figure, place, box.left + (place / WIDTH) * box.width, box.top + box.height / 2);
  });
}

// A page of a run at work is written anew every few seconds; it looks again, unless the reader is looking at a value.
const seconds = Number(root.dataset.refresh);
if (seconds) setInterval(() => { if (tip.hidden && !document.hidden) location.reload(); }, 1000 * seconds);
root.dataset.ready = "yes";
