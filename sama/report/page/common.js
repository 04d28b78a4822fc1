"use strict";
// What both pages share. Text from the data only ever becomes text nodes and attributes: no markup is made of it.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const shown = (value) => (value == null ? "–" : value.toFixed(data.scale.digits).replace("-", "−"));
const signed = (value) => (value > 0 ? "+" : "") + shown(value);
const share = (value) => Math.min(1, Math.max(0, (value - data.scale.low) / (data.scale.high - data.scale.low)));
const grade = (value) => "q" + Math.min(4, Math.floor(share(value) * 5));

function clock(seconds) {
  if (seconds == null) return "–";
  seconds = Math.round(seconds * 10) / 10;
  const whole = Math.floor(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  const two = (n) => String(n).padStart(2, "0");
  const tail = seconds < 600 ? "." + Math.round((seconds - whole) * 10) : "";
  return hours ? `${hours}:${two(minutes % 60)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}${tail}`;
}
function size(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let n = 0;
  for (; bytes >= 1000 && n < 4; n++) bytes /= 1000;
  return `${n && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[n]}`;
}
const chartWidth = () => (innerWidth < 700 ? 440 : 900); // so that text stays readable on a telephone
const picture = (number) => data.pictures[number];

// Ticks at round numbers between two ends.
function ticks(low, high, about) {
  const rough = (high - low) / about, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * ten).find((n) => n >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
}
const tickText = (value) => String(value).replace("-", "−");

// Lines over time: lines [{times, values, class, name}], marks [{seconds, value, class}].
function timeline(lines, marks, label, height = 190) {
  const all = lines.flatMap((line) => line.values), times = lines.flatMap((line) => line.times);
  if (all.length < 1) return null;
  let low = Math.min(...all), high = Math.max(...all);
  const least = (data.scale.high - data.scale.low) * 0.15, middle = (low + high) / 2;
  if (high - low < least) [low, high] = [middle - least / 2, middle + least / 2];
  const end = Math.max(...times), begin = Math.min(0, ...times), width = chartWidth(), left = 44, right = 14, top = 10, bottom = 24;
  const x = (t) => left + ((t - begin) / (end - begin || 1)) * (width - left - right);
  const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const v of ticks(low, high, 4))
    chart.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  for (const t of ticks(begin, end || 1, width / 110))
    chart.append(svg("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, clock(t).replace(/\.0$/, "")));
  for (const line of lines) {
    const points = line.values.map((v, k) => `${x(line.times[k]).toFixed(1)},${y(v).toFixed(1)}`);
    const group = svg("g", { class: line.class });
    if (lines.length === 1 && points.length > 1)
      group.append(svg("path", { class: "fill", d: `M${x(line.times[0])},${height - bottom}L${points.join("L")}L${x(line.times.at(-1))},${height - bottom}Z` }));
    group.append(svg("polyline", { class: "line", points: points.join(" ") }));
    if (points.length <= 60)
      line.values.forEach((v, k) => group.append(svg("circle", { cx: x(line.times[k]), cy: y(v), r: 3, fill: "currentColor" },
        svg("title", {}, `${line.name ? line.name + ", " : ""}${clock(line.times[k])}: ${shown(v)}`))));
    chart.append(group);
  }
  for (const mark of marks)
    chart.append(svg("circle", { class: mark.class, cx: x(mark.seconds), cy: y(mark.value), r: 6, fill: "none", stroke: "currentColor", "stroke-width": 2.5 }));
  return chart;
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Use ${dark ? "light" : "dark"} colours`);
  document.dispatchEvent(new Event("theme"));
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let chosen = false;
prefersDark.addEventListener("change", () => chosen || setTheme(prefersDark.matches));
$("theme").addEventListener("click", () => {
  chosen = true;
  setTheme(document.documentElement.dataset.theme !== "dark");
});
setTheme(prefersDark.matches);

// Plain words about the scale, and what the scores depend on.
function explain(node) {
  const [first, ...rest] = data.meaning;
  node.append(el("p", {}, first), el("p", {}, rest[0]),
    el("details", {}, el("summary", {}, "Limits, and which model gave the scores"),
      rest.slice(1).map((text) => el("p", {}, text)),
      el("dl", {}, data.contract.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))));
}
