// Two or more encodes of one source: timelines, frames with a slider between them, rates against quality.
const files = data.files, several = files.length > 2;
const byLabel = Object.fromEntries(files.map((file) => [file.label, file]));
const colour = (label) => "s" + (files.findIndex((file) => file.label === label) % 8);
let left = "A", right = "B";

const kbits = (bits) => `${Math.round(bits / 1000)} kbit/s`;
const between = (first, other) => data.differences.find((d) => d.first === first && d.other === other);
const VERDICTS = { better: "better", worse: "worse", undecided: "cannot be told", equal: "no difference" };
const tag = (label) => el("span", {}, el("span", { class: `key ${colour(label)}`, "aria-hidden": "true" }), el("b", {}, label));

// The table

function intervalPlot(d, reach) {
  const width = 150, height = 22, x = (value) => width / 2 + (value / reach) * (width / 2 - 4);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, "aria-hidden": "true", class: d.verdict === "better" ? "q4" : d.verdict === "worse" ? "q0" : "quiet" },
    svg("line", { class: "zero", x1: width / 2, x2: width / 2, y1: 1, y2: height - 1 }),
    svg("line", { class: "interval", x1: x(d.low), x2: x(d.high), y1: height / 2, y2: height / 2 }),
    svg("circle", { cx: x(d.mean), cy: height / 2, r: 5, fill: "currentColor" }));
}
function table() {
  const found = files.slice(1).map((file) => between("A", file.label));
  const reach = Math.max(...found.flatMap((d) => [Math.abs(d.low), Math.abs(d.high)]), 1e-9) * 1.05;
  const head = ["File", "Score", "Against A, with 95 % interval", "", "Bitrate", "Size", "Picture", "Codec", "Starts"];
  $("files").append(el("thead", {}, el("tr", {}, head.map((text, k) => el("th", { scope: "col", class: k === 1 || (k > 3 && k < 6) ? "n" : null }, text)))),
    el("tbody", {}, files.map((file, k) => {
      const d = k ? found[k - 1] : null;
      return el("tr", {}, el("td", {}, tag(file.label), el("span", { title: file.folder }, file.name)), el("td", { class: "n" }, el("b", { class: grade(file.score) }, shown(file.score))),
        el("td", { class: "number" }, d ? (d.verdict === "equal" ? "equal in every window" : `${signed(d.mean)} (${shown(d.low)} to ${shown(d.high)}): ${VERDICTS[d.verdict]}`) : ""),
        el("td", {}, d && d.verdict !== "equal" ? intervalPlot(d, reach) : ""),
        el("td", { class: "n" }, kbits(file.bitrate)), el("td", { class: "n" }, size(file.bytes)),
        el("td", { class: "number" }, `${file.width}×${file.height}, ${file.fps} fps`), el("td", {}, file.codec),
        el("td", { class: "number" }, file.offset ? `${Math.abs(file.offset).toFixed(2)} s ${file.offset > 0 ? "later" : "earlier"}` : k ? "together" : ""));
    })));
}

// Frames

function pair(shot, natural) {
  const a = shot.pictures[left], b = shot.pictures[right];
  if (!a || !b) return el("p", { class: "quiet" }, "There is no picture of one of these files.");
  const image = (label, one, cover) => el("img", { src: picture(one.picture), class: cover, alt: `${label} at ${clock(shot.seconds)}`, decoding: "async", draggable: "false" });
  const slider = el("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": `How much of ${left} is shown, the rest is ${right}, at ${clock(shot.seconds)}` });
  const box = el("div", { class: "pair" }, image(right, b, "under"), image(left, a, "over"), el("div", { class: "edge" }),
    el("span", { class: "mark left" }, `${left} ${byLabel[left].name}`), el("span", { class: "mark right" }, `${right} ${byLabel[right].name}`), slider);
  const wide = Math.max(a.width, b.width), high = wide === a.width ? a.height : b.height;
  if (natural) {
    box.style.width = wide + "px";
    box.style.height = high + "px";
    for (const one of box.querySelectorAll("img")) [one.style.width, one.style.height] = [wide + "px", high + "px"];
  } else box.style.aspectRatio = `${wide} / ${high}`;
  slider.addEventListener("input", () => box.style.setProperty("--at", slider.value + "%"));
  return box;
}
function scoresOf(shot) {
  return [left, right].map((label) => el("span", {}, tag(label), shown(byLabel[label].values[shot.window])));
}
function shots() {
  $("shots").replaceChildren(...data.shots.map((shot) => {
    const full = el("button", { type: "button", class: "plain" }, "Full size");
    full.addEventListener("click", () => {
      $("fulltitle").textContent = `${left} and ${right} at ${clock(shot.seconds)}, pixel for pixel`;
      $("fullview").replaceChildren(pair(shot, true));
      $("full").showModal();
      $("fullview").querySelector("input")?.focus();
    });
    return el("figure", {}, pair(shot, false), el("figcaption", {}, el("b", {}, clock(shot.seconds)), scoresOf(shot), full));
  }));
}
function pickers() {
  const picker = (text, value, choose) => {
    const select = el("select", { "aria-label": text }, files.filter((file) => data.shots.some((shot) => shot.pictures[file.label])).map((file) =>
      el("option", { value: file.label, selected: file.label === value }, `${file.label} ${file.name}`)));
    select.addEventListener("input", () => {
      choose(select.value);
      shots();
      differences();
    });
    return el("label", {}, el("span", { class: "quiet small" }, text), select);
  };
  if (several) $("pickers").append(picker("Left", left, (label) => (left = label)), picker("Right", right, (label) => (right = label)));
  $("pickers").append(el("span", { class: "quiet small" }, "Drag over a picture, or use the arrow keys on it, to move the edge between the two."));
}

// Charts

function lines() {
  const label = files.map((file) => `${file.label}: ${shown(Math.min(...file.values))} to ${shown(Math.max(...file.values))}`).join("; ");
  $("keys").append(...files.map((file) => el("span", {}, tag(file.label), file.name)));
  $("lines").append(timeline(files.map((file) => ({ times: file.times, values: file.values, class: colour(file.label), name: file.label })), [], `Scores over time. ${label}`, 220));
}
function differences() {
  const a = byLabel[left], b = byLabel[right], d = b.values.map((value, k) => value - a.values[k]);
  const width = chartWidth(), height = 120, edge = 44, reach = Math.max(...d.map(Math.abs), 1e-9), end = Math.max(...a.times), begin = Math.min(0, ...a.times);
  const x = (t) => edge + ((t - begin) / (end - begin || 1)) * (width - edge - 30), y = (v) => height / 2 - (v / reach) * (height / 2 - 12);
  const wide = Math.max(2, Math.min(28, ((width - edge) / d.length) * 0.6));
  const most = d.reduce((best, v, k) => (Math.abs(v) > Math.abs(d[best]) ? k : best), 0);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${right} less ${left}: largest at ${clock(a.times[most])}, ${signed(d[most])}` });
  d.forEach((v, k) => chart.append(svg("rect", { class: v >= 0 ? colour(right) : colour(left), fill: "currentColor", x: x(a.times[k]) - wide / 2, width: wide, y: Math.min(y(0), y(v)), height: Math.max(1, Math.abs(y(v) - y(0))) },
    svg("title", {}, `${clock(a.times[k])}: ${signed(v)}`))));
  chart.append(svg("line", { class: "zero", x1: edge, x2: width, y1: y(0), y2: y(0) }),
    svg("text", { x: edge - 7, y: y(reach) + 4, "text-anchor": "end" }, signed(reach)), svg("text", { x: edge - 7, y: y(-reach) + 4, "text-anchor": "end" }, signed(-reach)));
  $("difference").replaceChildren(chart, el("p", { class: "quiet small" }, `Above the line ${right} (${b.name}) scores higher, below it ${left} (${a.name}).`));
}
function curve() {
  const width = chartWidth(), height = 320, edge = 50, right = 40, bottom = 34, top = 14;
  const rates = files.map((file) => Math.log2(file.bitrate / 1000)), scores = files.map((file) => file.score);
  const pad = (low, high) => [low - (high - low || 1) * 0.08, high + (high - low || 1) * 0.08];
  const [x0, x1] = pad(Math.min(...rates), Math.max(...rates)), [y0, y1] = pad(Math.min(...scores), Math.max(...scores));
  const x = (bits) => edge + ((Math.log2(bits / 1000) - x0) / (x1 - x0)) * (width - edge - right), y = (v) => top + (1 - (v - y0) / (y1 - y0)) * (height - top - bottom);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Score against bitrate: " + files.map((file) => `${file.label} ${kbits(file.bitrate)}, ${shown(file.score)}`).join("; ") });
  for (const v of ticks(y0, y1, 5)) chart.append(svg("line", { class: "axis", x1: edge, x2: width - right, y1: y(v), y2: y(v) }), svg("text", { x: edge - 7, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  const step = Math.max(1, Math.ceil((x1 - x0) / (width / 120)));
  for (let p = Math.ceil(x0); p <= x1; p += step) chart.append(svg("text", { x: x(1000 * 2 ** p), y: height - 14, "text-anchor": "middle" }, p < 0 ? (2 ** p).toFixed(2) : String(2 ** p)));
  chart.append(svg("text", { x: width - right, y: height - 1, "text-anchor": "end" }, "kbit/s"));
  const way = (labels) => labels.map((label) => `${x(byLabel[label].bitrate).toFixed(1)},${y(byLabel[label].score).toFixed(1)}`).join(" ");
  chart.append(svg("polyline", { class: "hull", points: way(data.hull) }));
  Object.entries(data.groups).forEach(([name, labels], k) => {
    const sorted = [...labels].sort((a, b) => byLabel[a].bitrate - byLabel[b].bitrate);
    const group = svg("g", { class: `s${k % 8}` }, svg("polyline", { class: "line", points: way(sorted) }));
    for (const label of sorted)
      group.append(svg("circle", { class: "dot", cx: x(byLabel[label].bitrate), cy: y(byLabel[label].score), r: 5.5, fill: "currentColor" }, svg("title", {}, `${label} ${byLabel[label].name}: ${kbits(byLabel[label].bitrate)}, ${shown(byLabel[label].score)}`)),
        svg("text", { x: x(byLabel[label].bitrate) + 9, y: y(byLabel[label].score) + 13 }, label));
    chart.append(group);
    $("ladders").append(el("span", {}, el("span", { class: `key s${k % 8}` }), name));
  });
  $("curve").append(chart);
  $("hull").textContent = `Dashed: the hull. On it: ${data.hull.join(", ")}. No other file here gives more for its rate.`;
  if (!data.deltas.length) return;
  const cell = (value, unit, digits) => (value == null ? "–" : `${value > 0 ? "+" : ""}${value.toFixed(digits).replace("-", "−")} ${unit}`);
  $("deltas").append(el("thead", {}, el("tr", {}, ["Bjontegaard deltas", "Rate at the same quality", "Quality at the same rate", ""].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, data.deltas.map((d) => el("tr", {}, el("td", {}, `${d.other} against ${d.first}`), el("td", { class: "number" }, cell(d.rate_percent, "%", 1)), el("td", { class: "number" }, cell(d.quality, "points", 2)),
      el("td", { class: "quiet small" }, d.reason + (d.left_out ? ` ${d.left_out} points left out that cost more for no gain.` : ""))))));
}

$("verdict").textContent = data.title[0].toUpperCase() + data.title.slice(1);
$("summary").append(...(several ? [`${files.length} files`] : files.flatMap((file, k) => [k ? " · " : "", tag(file.label), file.name])), ` · scale “${data.scale.name}”`);
$("made").textContent = `Made ${data.made} by sama ${data.version}. This page loads nothing from the network.`;
explain($("meaning"));
table();
lines();
differences();
pickers();
shots();
$("rates").hidden = !several;
if (several) curve();
$("close").addEventListener("click", () => $("full").close());
$("full").addEventListener("close", () => $("fullview").replaceChildren());
