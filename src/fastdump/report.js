// The page of `fastdump report`. Text of the target becomes text nodes; Plotly, which reads some
// markup in the text that it draws, is given numbers and our own words only.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const KIND_COLOURS = ["#4e79a7", "#f28e2b", "#ffbe7d", "#a0cbe8", "#59a14f", "#8cd17d", "#b6992d",
  "#b07aa1", "#e15759", "#bab0ac"];
const CLASS_COLOURS = ["#a0a4b8", "#e6e6e6", "#4e79a7", "#59a14f", "#e15759"];
const STEP = 200; // rows of regions that are shown at a time
const CONFIG = { displaylogo: false, responsive: true };
const BARE = { ...CONFIG, displayModeBar: false };
const PLAIN = { margin: { l: 8, r: 8, t: 8, b: 8 }, xaxis: { visible: false }, yaxis: { visible: false } };

const byId = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en-US");
const share = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)}%` : "-");

function size(length) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  for (; length >= 1024 && unit < units.length - 1; unit++) length /= 1024;
  return `${unit && length < 100 ? length.toFixed(1) : Math.round(length)} ${units[unit]}`;
}

function add(parent, name, text = "", className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return parent.appendChild(element);
}

// columns: [head, class, text of a row]
function table(id, columns, rows) {
  const element = byId(id);
  element.replaceChildren();
  if (!rows.length) return void add(add(element, "tr"), "td", "none", "note");
  const head = add(element, "tr");
  for (const [name, className] of columns) add(head, "th", name, className);
  for (const row of rows) {
    const line = add(element, "tr");
    for (const [, className, text] of columns) add(line, "td", text(row), className);
  }
}

function legend(id, names, colours, used) {
  byId(id).replaceChildren();
  names.forEach((name, number) => {
    if (!used.has(number)) return;
    const entry = add(byId(id), "span");
    add(entry, "i").style.background = colours[number];
    entry.append(name);
  });
}

// A colour for each whole number: Plotly's scales run on between theirs.
function scale(colours) {
  const steps = colours.flatMap((colour, n) => [
    [n / colours.length, colour], [(n + 1) / colours.length, colour]]);
  return { colorscale: steps, zmin: -0.5, zmax: colours.length - 0.5 };
}

function drawHead() {
  byId("name").textContent = `fastdump: ${data.name}`;
  const said = data.live ? `; the kernel says ${size(data.rss)}` : "";
  byId("sum").textContent = `${size(data.total)} ${data.live ? "resident" : "in the dump"}${said}, `
    + `${count(data.strips.reduce((sum, strip) => sum + strip[2], 0))} regions`;
  for (const [text, command] of data.suspects) {
    add(byId("suspects"), "p", `${text}: `).append(add(byId("suspects"), "code", command));
  }
  for (const text of data.problems) add(byId("problems"), "p", `not sure: ${text}`, "note");
}

function drawStrip() {
  const strips = data.strips, edges = [0];
  for (const strip of strips) edges.push(edges[edges.length - 1] + strip[6]);
  const kinds = { type: "heatmap", x: edges, y: [1, 2], z: [strips.map((s) => s[5])],
    ...scale(KIND_COLOURS), showscale: false, hoverinfo: "none" };
  const resident = { type: "heatmap", x: edges, y: [0, 0.9],
    z: [strips.map((s) => (s[3] ? s[4] / s[3] : 0))], zmin: 0, zmax: 1,
    colorscale: [[0, "#f0f0f0"], [1, "#303030"]], showscale: false, hoverinfo: "none" };
  const yaxis = { visible: false, fixedrange: true };
  legend("strip-legend", data.kinds, KIND_COLOURS, new Set(strips.map((s) => s[5])));
  return Plotly.newPlot("strip", [kinds, resident], { ...PLAIN, yaxis }, BARE).then((plot) => {
    plot.on("plotly_hover", (event) => {
      const [start, end, regions, length, present, kind, , path] = strips[event.points[0].pointIndex[1]];
      byId("strip-detail").textContent = `${start}-${end}  ${size(length)}, ${size(present)} resident\n`
        + (regions > 1 ? `${count(regions)} regions, mostly ${data.kinds[kind]}` : `${data.kinds[kind]}  ${path}`);
    });
  });
}

// Where number n lies on Hilbert's curve through a square of side * side.
function hilbert(n, side) {
  let x = 0, y = 0;
  for (let s = 1; s < side; s *= 2, n = Math.floor(n / 4)) {
    const right = 1 & (n >> 1), up = 1 & (n ^ right);
    if (!up) {
      if (right) [x, y] = [s - 1 - x, s - 1 - y];
      [x, y] = [y, x];
    }
    x += s * right;
    y += s * up;
  }
  return [x, y];
}

function drawMap() {
  const cells = data.cells, total = cells.start.length;
  byId("map-note").textContent = total
    ? `What was read of it, along a Hilbert curve: neighbours stay neighbours. ${count(total)} cells of ${size(cells.size)}.`
    : "Nothing of it was read.";
  let side = 1;
  while (side * side < total) side *= 2;
  const places = cells.start.map((_, n) => hilbert(n, side));
  const most = (axis) => places.reduce((found, place) => Math.max(found, place[axis]), 0);
  const width = most(0) + 1, height = most(1) + 1; // of what is filled
  const grid = () => Array.from({ length: height }, () => Array(width).fill(null));
  const numbers = grid(), z = { class: grid(), kind: grid() };
  for (let n = 0; n < total; n++) {
    const [x, y] = places[n], pages = cells.pages[n];
    numbers[y][x] = n;
    z.kind[y][x] = cells.kind[n];
    z.class[y][x] = pages.indexOf(Math.max(...pages));
  }
  const styles = { class: [data.classes, CLASS_COLOURS], kind: [data.kinds, KIND_COLOURS] };
  const trace = (by) => ({ type: "heatmap", z: z[by], ...scale(styles[by][1]), showscale: false, hoverinfo: "none" });
  const layout = { ...PLAIN, xaxis: { visible: false, constrain: "domain" },
    yaxis: { visible: false, scaleanchor: "x", constrain: "domain" } };
  const show = () => {
    const by = byId("map-by").value;
    legend("map-legend", ...styles[by], new Set(z[by].flat()));
    return Plotly.react("map", [trace(by)], layout, CONFIG);
  };
  byId("map-by").addEventListener("change", show);
  return show().then((plot) => {
    plot.on("plotly_hover", (event) => {
      const [y, x] = event.points[0].pointIndex, n = numbers[y][x];
      if (n === null) return;
      const holds = data.classes.map((name, i) => [cells.pages[n][i], name]).filter(([pages]) => pages);
      byId("map-detail").textContent = `${cells.start[n]}  ${data.kinds[cells.kind[n]]}\n`
        + holds.map(([pages, name]) => `${count(pages)} ${pages === 1 ? "page" : "pages"} ${name}`).join(", ");
    });
  });
}

function drawLedger() {
  const rows = data.ledger.filter(([, bytes]) => bytes).reverse();
  byId("ledger-note").textContent = data.live
    ? "Every resident byte in one bucket." : "Every byte that the dump has in one bucket.";
  return Plotly.newPlot("ledger", [{ type: "bar", orientation: "h", x: rows.map((r) => r[1]), y: rows.map((r) => r[0]),
    text: rows.map((r) => `${size(r[1])}, ${share(r[1], data.total)}`), hoverinfo: "text", textposition: "auto",
    marker: { color: "#4e79a7" } }],
  { margin: { l: 8, r: 8, t: 8, b: 8 }, xaxis: { visible: false }, yaxis: { automargin: true } }, BARE);
}

function drawTables() {
  table("modules", [["bytes", "n", (m) => size(m.bytes)], ["of live", "n", (m) => share(m.bytes, data.live_bytes)],
    ["chunks", "n", (m) => count(m.chunks)], ["module", "", (m) => m.path]], data.modules);
  table("types", [["objects", "n", (t) => count(t.objects)], ["bytes", "n", (t) => (t.bytes ? size(t.bytes) : "-")],
    ["language", "", (t) => t.language], ["type", "", (t) => t.name], ["module", "", (t) => t.module]], data.types);
  table("templates", [["strings", "n", (t) => count(t.strings)], ["bytes", "n", (t) => size(t.bytes)],
    [data.text_title, "", (t) => t.text]], data.templates);
}

function drawRegions() {
  const regions = data.regions, [rest, restLength, restResident] = regions.rest;
  const path = (n) => regions.paths[regions.path[n]];
  const columns = [["address", "a", (n) => `${regions.start[n]}-${regions.end[n]}`],
    ["size", "n", (n) => size(regions.length[n])], ["resident", "n", (n) => size(regions.resident[n])],
    ["perms", "a", (n) => regions.perms[n]], ["label", "", (n) => data.kinds[regions.kind[n]]], ["path", "", path]];
  const all = regions.start.map((_, n) => n);
  const lines = all.map((n) => [0, 3, 4, 5].map((c) => columns[c][2](n)).join(" ").toLowerCase());
  let matches = all, shown = STEP;
  const draw = () => {
    table("regions", columns, matches.slice(0, shown));
    byId("more").hidden = shown >= matches.length;
    byId("matches").textContent = `${count(matches.length)} of ${count(all.length)}, the most resident first`;
  };
  const search = () => {
    const text = byId("search").value.toLowerCase();
    matches = text ? all.filter((n) => lines[n].includes(text)) : all;
    shown = STEP;
    draw();
  };
  byId("search").addEventListener("input", search);
  byId("more").addEventListener("click", () => { shown += STEP; draw(); });
  if (rest) {
    byId("rest").textContent = `${count(rest)} regions more, of ${size(restLength)}, with ${size(restResident)} resident.`;
  }
  byId("search").value = decodeURIComponent(location.hash.slice(1)); // report.html#libc
  search();
}

drawHead();
drawTables();
drawRegions();
Promise.all([drawStrip(), drawMap(), drawLedger()]).then(() => { document.body.dataset.drawn = "yes"; });
