// Many files: rows are drawn as they come into view. One file: it is shown alone.
const files = data.files;
const TEXT = { name: "File", score: "Score", duration: "Length", bytes: "Size", codec: "Codec" };
const where = (file) => data.folders[file.folder];
files.forEach((file) => {
  file.text = `${where(file)}/${file.name} ${file.codec || ""} ${file.reason || ""}`.toLowerCase();
  file.failed = file.score == null;
});
let listed = files, active = 0, sorting = { key: "score", down: false };

// Shown alone or in the dialog

function fact(name, value) {
  return value == null || value === "" ? [] : [el("dt", {}, name), el("dd", {}, value)];
}
function describe(file) {
  const pixels = file.width ? `${file.width}×${file.height}` : null;
  const moving = file.duration != null && file.frames > 1;
  return el("dl", {}, fact("Folder", where(file)), fact("Picture", pixels), fact("Codec", file.codec),
    fact("Size", file.bytes == null ? null : size(file.bytes)),
    fact("Length", moving ? `${clock(file.duration)}, ${file.frames} frames, ${file.fps} a second` : null),
    fact("Rate", moving && file.bytes ? `${Math.round(file.bytes * 8 / file.duration / 1000)} kbit/s` : null),
    fact("Read by", file.decoder), fact("Scored in", file.spent ? `${file.spent} s` : null));
}
function mapped(moment, image, figure, button) {
  const rows = moment.cells.length, columns = moment.cells[0].length, values = moment.cells.flat();
  const low = Math.min(...values), high = Math.max(...values);
  const canvas = el("canvas", { width: columns, height: rows, role: "img", hidden: true,
    "aria-label": `Quality map of ${rows} by ${columns} cells, from ${shown(low)} to ${shown(high)}; lowest ${place(moment.cells, low)}` });
  const legend = el("div", { class: "legend", hidden: true }, el("span", {}, shown(low)), el("i"), el("span", {}, shown(high)));
  const draw = () => {
    const style = getComputedStyle(document.documentElement), brush = canvas.getContext("2d");
    const colours = [0, 1, 2, 3, 4].map((k) => style.getPropertyValue("--q" + k).trim());
    moment.cells.forEach((line, r) => line.forEach((value, c) => {
      const at = ((value - low) / (high - low || 1)) * 3.999, k = Math.floor(at);
      brush.globalAlpha = 1;
      brush.fillStyle = colours[k];
      brush.fillRect(c, r, 1, 1);
      brush.globalAlpha = at - k;
      brush.fillStyle = colours[k + 1];
      brush.fillRect(c, r, 1, 1);
    }));
  };
  draw();
  document.addEventListener("theme", draw);
  image.after(canvas);
  figure.append(legend);
  button.addEventListener("click", () => {
    canvas.hidden = legend.hidden = !canvas.hidden;
    button.setAttribute("aria-pressed", String(!canvas.hidden));
  });
}
function place(cells, value) {
  const r = cells.findIndex((line) => line.includes(value)), c = cells[r].indexOf(value);
  const part = (n, of, names) => names[Math.min(2, Math.floor((n * 3) / of))];
  return `${part(r, cells.length, ["at the top", "in the middle", "at the bottom"])}, ${part(c, cells[0].length, ["left", "centre", "right"])}`;
}
function momentFigure(moment, file) {
  const title = moment.seconds == null ? "The picture" : clock(moment.seconds);
  const image = el("img", { src: picture(moment.picture), alt: `Frame of ${file.name} at ${title}`, decoding: "async" });
  const button = moment.cells ? el("button", { type: "button", class: "plain", "aria-pressed": "false" }, "Quality map") : null;
  const figure = el("figure", {}, el("div", { class: "frame" }, el("div", { class: "shot" }, image)),
    el("figcaption", {}, el("b", { class: grade(moment.score) + " number" }, shown(moment.score)), el("span", {}, title), button));
  if (moment.cells) mapped(moment, image, figure, button);
  return figure;
}
function rank(file) {
  const scored = files.filter((other) => !other.failed), lower = scored.filter((other) => other.score < file.score).length;
  return lower ? `Higher than ${lower} of the ${scored.length} files` : `The lowest of the ${scored.length} files`;
}
function show(file, node, heading) {
  node.replaceChildren();
  if (heading) node.append(el("h2", { id: "name", tabindex: "-1" }, file.name));
  if (file.failed) {
    node.append(el("p", { class: "card reason" }, el("b", {}, "Could not be scored: "), file.reason),
      el("div", { class: "card" }, describe(file)));
    return;
  }
  const at = el("i");
  at.style.left = `${share(file.score) * 100}%`;
  node.append(el("div", { class: "facts" },
    el("div", { class: "card" },
      el("div", { class: "big " + grade(file.score) }, shown(file.score)),
      el("div", { class: "quiet" }, `scale “${data.scale.name}”`),
      el("div", { class: "scalebar", "aria-hidden": "true" }, at),
      el("div", { class: "ends small quiet", "aria-hidden": "true" }, el("span", {}, `${shown(data.scale.low)} worst`), el("span", {}, `best ${shown(data.scale.high)}`)),
      files.length > 1 && el("p", { class: "small quiet" }, rank(file)),
      file.also && el("p", { class: "small quiet" }, file.also)),
    el("div", { class: "card" }, describe(file))));
  const times = file.times || [], values = file.values || [], moments = file.moments || [];
  if (times.length) {
    const lowest = values.indexOf(Math.min(...values));
    const label = `Score over time, ${shown(Math.min(...values))} to ${shown(Math.max(...values))}, lowest at ${clock(times[lowest])}`;
    const marks = moments.filter((m) => m.seconds != null).map((m) => ({ seconds: m.seconds, value: m.score, class: grade(m.score) }));
    node.append(el("h3", {}, "Over time"), el("div", { class: "card s0" }, timeline([{ times, values, class: "s0" }], marks, label),
      file.windows && el("p", { class: "small quiet" }, `Drawn from ${values.length} of ${file.windows} windows: the lowest of each stretch.`)));
  }
  if (moments.length) {
    const groups = [["Worst moments", "lowest"], ["Best moments", "highest"], ["Picture", ""]];
    for (const [title, what] of groups) {
      const found = moments.filter((moment) => moment.what === what);
      if (found.length) node.append(el("h3", {}, title), el("div", { class: "moments" }, found.map((m) => momentFigure(m, file))));
    }
    if (!moments.some((moment) => moment.cells) && data.hints.maps) node.append(el("p", { class: "small quiet" }, data.hints.maps));
  } else node.append(el("p", { class: "card quiet" }, file.problem || data.hints.pictures || "There are no pictures of this file."));
  if (values.length && times.length) node.append(el("h3", {}, "Scores of the windows"), el("div", { class: "card scroll", tabindex: "0", role: "region", "aria-label": "Scores of the windows" },
    el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), el("th", { scope: "col" }, "Score"))),
      el("tbody", {}, values.map((value, k) => el("tr", {}, el("td", {}, clock(times[k])), el("td", { class: grade(value) }, shown(value))))))));
}

// The list

function sparkline(values) {
  if (!values || values.length < 2) return "";
  const width = 160, height = 34, step = width / (values.length - 1);
  const points = values.map((v, k) => `${(k * step).toFixed(1)},${(2 + (1 - share(v)) * (height - 4)).toFixed(1)}`);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", preserveAspectRatio: "none" },
    svg("polyline", { class: "line", points: points.join(" ") }));
}
function drawRow(index) {
  const file = listed[index];
  const title = file.failed ? `${file.name}: failed, ${file.reason}` : `${file.name}: score ${shown(file.score)}`;
  const row = el("div", { role: "row", class: "row item", "aria-rowindex": index + 2, "aria-label": title, tabindex: index === active ? "0" : "-1" });
  const cell = (content, name) => el("div", { role: "gridcell", class: name }, content);
  row.dataset.index = index;
  row.style.top = `${index * rowHeight}px`;
  row.append(cell(file.thumbnail == null ? el("div", { class: "thumb" }) : el("img", { class: "thumb", src: picture(file.thumbnail), alt: "", loading: "lazy", decoding: "async" })),
    cell([el("div", { class: "name", title: file.name }, file.name), el("div", { class: "where quiet small", title: where(file) }, where(file))]));
  if (file.failed) row.append(cell([el("span", { class: "tag" }, "failed"), el("span", {}, file.reason)], "why"));
  else {
    const level = el("i");
    level.style.width = `${Math.max(3, share(file.score) * 100)}%`;
    row.append(cell([el("b", { class: grade(file.score) }, shown(file.score)), el("span", { class: "gauge " + grade(file.score) }, level)], "score"),
      cell(sparkline(file.values), grade(file.score)), cell(file.frames > 1 ? clock(file.duration) : "", "number"),
      cell([el("div", {}, size(file.bytes)), el("div", { class: "quiet small" }, file.width ? `${file.width}×${file.height}` : "")], "number"), cell(file.codec || ""));
  }
  return row;
}
let rowHeight = 72;
const drawn = new Map();
function draw() {
  const top = $("rows").getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(-top / rowHeight) - 6), last = Math.min(listed.length, Math.ceil((innerHeight - top) / rowHeight) + 6);
  for (const [index, row] of drawn)
    if ((index < first || index >= last) && row !== document.activeElement) {
      row.remove();
      drawn.delete(index);
    }
  for (let index = first; index < last; index++) if (!drawn.has(index)) add(index);
}
function add(index) {
  const row = drawRow(index);
  drawn.set(index, row);
  let after = null;
  for (const other of $("rows").children) if (Number(other.dataset.index) > index) { after = other; break; }
  $("rows").insertBefore(row, after); // in the order of the list, as screen readers read it
}
function update() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = $("status").value, folder = $("folder").value;
  const from = $("from").value === "" ? -Infinity : Number($("from").value), to = $("to").value === "" ? Infinity : Number($("to").value);
  const bounded = from > -Infinity || to < Infinity;
  listed = files.filter((file) =>
    words.every((word) => file.text.includes(word)) && (!status || (status === "ok") === !file.failed) &&
    (folder === "" || file.folder === Number(folder)) && (!bounded || (!file.failed && file.score >= from && file.score <= to)));
  const { key, down } = sorting, text = key === "name" || key === "codec";
  const value = (file) => (text ? file[key] || "" : file[key]);
  listed.sort((a, b) => {
    const x = value(a), y = value(b);
    if (x == null || y == null) return (x == null) - (y == null);
    return (text ? collator.compare(x, y) : x - y) * (down ? -1 : 1);
  });
  active = 0;
  drawn.forEach((row) => row.remove());
  drawn.clear();
  $("rows").style.height = `${listed.length * rowHeight}px`;
  $("table").setAttribute("aria-rowcount", listed.length + 1);
  $("nothing").hidden = listed.length > 0;
  $("count").textContent = listed.length === files.length ? `${files.length} files` : `${listed.length} of ${files.length} files`;
  document.querySelectorAll("#head [role=columnheader]").forEach((cell) => {
    const on = cell.dataset.key === key;
    cell.setAttribute("aria-sort", on ? (down ? "descending" : "ascending") : "none");
    const button = cell.querySelector("button");
    if (!button) return;
    button.toggleAttribute("data-active", on);
    button.textContent = TEXT[cell.dataset.key] + (on ? (down ? " ↓" : " ↑") : "");
  });
  $("order").value = `${key} ${down}`;
  document.querySelectorAll(".hbar").forEach((bar) =>
    bar.setAttribute("aria-pressed", String(bar.dataset.from === $("from").value && bar.dataset.to === $("to").value && bounded)));
  draw();
}
const collator = new Intl.Collator(undefined, { numeric: true });
function sortBy(key) {
  sorting = { key, down: sorting.key === key ? !sorting.down : false };
  update();
}
function focusRow(index) {
  active = Math.max(0, Math.min(listed.length - 1, index));
  const top = $("rows").getBoundingClientRect().top + active * rowHeight, bar = getComputedStyle(document.querySelector(".bar")).position === "sticky" ? document.querySelector(".bar").offsetHeight : 0;
  if (top < bar) scrollBy(0, top - bar);
  else if (top + rowHeight > innerHeight) scrollBy(0, top + rowHeight - innerHeight);
  draw();
  if (!drawn.has(active)) add(active);
  drawn.forEach((row, k) => row.setAttribute("tabindex", k === active ? "0" : "-1"));
  drawn.get(active)?.focus({ preventScroll: true });
  draw();
}
function histogram() {
  const scores = files.filter((file) => !file.failed).map((file) => file.score);
  if (!scores.length) return el("p", { class: "quiet" }, "No file could be scored.");
  const bins = 20, width = 460, height = 150, bottom = 20, step = (data.scale.high - data.scale.low) / bins;
  const counts = new Array(bins).fill(0);
  const bin = (value) => Math.min(bins - 1, Math.floor(share(value) * bins));
  scores.forEach((value) => counts[bin(value)]++);
  const most = Math.max(...counts), wide = width / bins;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Number of files by score" });
  counts.forEach((count, k) => {
    const low = data.scale.low + k * step, tall = count ? Math.max(3, (count / most) * (height - bottom - 16)) : 0;
    if (!count) return;
    const text = (value) => String(Number(value.toFixed(data.scale.digits + 2)));
    const bar = svg("g", { class: "hbar " + grade(low + step / 2), role: "button", tabindex: "0", "aria-pressed": "false", "aria-label": `${count} files with scores from ${shown(low)} to ${shown(low + step)}` },
      svg("rect", { class: "hit", x: k * wide, y: 0, width: wide, height: height - bottom, rx: 3 }),
      svg("rect", { x: k * wide + 2, y: height - bottom - tall, width: wide - 4, height: tall, rx: 2, fill: "currentColor" }),
      svg("text", { x: (k + 0.5) * wide, y: height - bottom - tall - 4, "text-anchor": "middle" }, String(count)));
    [bar.dataset.from, bar.dataset.to] = [text(low), text(low + step)];
    const choose = () => {
      const on = bar.getAttribute("aria-pressed") === "true";
      [$("from").value, $("to").value] = on ? ["", ""] : [bar.dataset.from, bar.dataset.to];
      update();
    };
    bar.addEventListener("click", choose);
    bar.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose();
      }
    });
    chart.append(bar);
  });
  chart.append(svg("line", { class: "axis", x1: 0, x2: width, y1: height - bottom, y2: height - bottom }));
  for (const value of ticks(data.scale.low, data.scale.high, 6))
    chart.append(svg("text", { x: share(value) * width, y: height - 4, "text-anchor": "middle" }, tickText(value)));
  return chart;
}

// Opening a file

const detail = $("detail");
let opened = 0;
function open(index) {
  if (index < 0 || index >= listed.length) return;
  opened = active = index;
  show(listed[index], $("file"), true);
  $("place").textContent = `${index + 1} of ${listed.length}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === listed.length - 1;
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
  $("name").focus({ preventScroll: true });
}
function listen() {
  $("previous").addEventListener("click", () => open(opened - 1));
  $("next").addEventListener("click", () => open(opened + 1));
  $("close").addEventListener("click", () => detail.close());
  detail.addEventListener("click", (event) => event.target === detail && detail.close());
  detail.addEventListener("close", () => focusRow(opened));
  detail.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(opened - 1);
    if (event.key === "ArrowRight") open(opened + 1);
  });
  $("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".item");
    if (row) open(Number(row.dataset.index));
  });
  $("rows").addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(innerHeight / rowHeight) - 2);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: listed.length - 1, PageDown: active + page, PageUp: active - page }[event.key];
    if (to != null) focusRow(to);
    else if (event.key === "Enter" || event.key === " ") open(active);
    else return;
    event.preventDefault();
  });
  $("rows").addEventListener("focusin", (event) => {
    const row = event.target.closest(".item");
    if (row) active = Number(row.dataset.index);
  });
  for (const id of ["search", "status", "folder", "from", "to"]) $(id).addEventListener("input", update);
  $("order").addEventListener("input", () => {
    const [key, down] = $("order").value.split(" ");
    sorting = { key, down: down === "true" };
    update();
  });
  $("clear").addEventListener("click", () => {
    for (const id of ["search", "status", "folder", "from", "to"]) $(id).value = "";
    update();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !detail.open && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("search").focus();
    }
  });
  let asked = false;
  const soon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", () => {
    const before = rowHeight;
    measure();
    if (rowHeight === before) soon();
    else update();
  });
}
function measure() {
  rowHeight = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--row"), 10);
}

function begin() {
  const scored = files.filter((file) => !file.failed), failed = files.length - scored.length;
  $("title").textContent = data.title;
  $("made").textContent = `Made ${data.made} by sama ${data.version}. This page loads nothing from the network.`;
  explain($("meaning"));
  if (files.length === 1) {
    $("list").hidden = true;
    $("summary").textContent = `Score of one file on the scale “${data.scale.name}”`;
    document.querySelector("#overview > section").hidden = true;
    $("only").hidden = false;
    show(files[0], $("only"), false);
    $("only").after($("overview"));
    document.querySelector(".skip").href = "#only";
    return;
  }
  const middle = scored.map((file) => file.score).sort((a, b) => a - b)[scored.length >> 1];
  $("summary").textContent = `${scored.length} files scored, ${failed} failed` + (scored.length ? `; median ${shown(middle)}, lowest ${shown(scored[0].score)}` : "") + "; worst first";
  $("histogram").append(histogram());
  $("folder").append(el("option", { value: "" }, "all folders"), ...data.folders.map((name, k) => el("option", { value: k }, name)));
  const head = [null, "name", "score", "spark", "duration", "bytes", "codec"].map((key) => {
    const label = key === "spark" ? "Over time" : key ? "" : "Picture";
    const cell = el("div", { role: "columnheader" }, TEXT[key] ? el("button", { type: "button", class: "sort", onclick: () => sortBy(key) }, TEXT[key]) : el("span", { class: "quiet" }, label));
    cell.dataset.key = key || "";
    return cell;
  });
  $("head").append(...head);
  $("order").append(...Object.entries(TEXT).flatMap(([key, text]) => [false, true].map((down) =>
    el("option", { value: `${key} ${down}` }, `${text} ${down ? "↓" : "↑"}`))));
  measure();
  listen();
  update();
}
begin();
