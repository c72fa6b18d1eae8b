// The page: its state is the fragment of its address, so that every view of the run has a link and "back" works.

const AT_ONCE = 24; // Cards that are made at a time.
const CHARTS = ["reward/total", "reward/emotion", "tool/zoom/rate", "policy/kl", "sft/loss", "policy/entropy"];
const CHART_COUNT = 4;
const NARROW = 520; // Pixels, as in the style: curves are folded at first.
const CHIPS = [["outcome", "wrong"], ["outcome", "right"], ["outcome", "no answer"], ["calls", "refused"]];

const id = (name) => document.getElementById(name);
const waiting = new Map(); // Addresses of data that are being loaded, each with what to do then.
const files = new Map(); // Promises of data, by address.
const metrics = new Map(); // Of runs, by number.
const charts = []; // Functions that draw the curves of the runs that are shown.
let index = null, state = {}, rows = [], made = 0;

/** What a file of data calls (viewer/site.py). */
function receive(address, text) {
  waiting.get(address)(JSON.parse(text));
}

/** The data of an address, loaded once. */
function load(address) {
  if (!files.has(address)) {
    files.set(address, new Promise((resolve, reject) => {
      waiting.set(address, resolve);
      document.head.append(make("script", { src: address, onerror: () => {
        files.delete(address);
        reject(new Error(`${address} cannot be read`));
      } }));
    }));
  }
  return files.get(address);
}

/** Changes the state by the given keys ("" removes one), as a new entry of the browser's history. */
function go(changes) {
  const next = Object.entries({ ...state, ...changes }).filter(([, value]) => value !== "");
  location.hash = new URLSearchParams(next).toString();
}

function show() {
  state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const found = select(index, state);
  const order = sorted(index, found.rows, state.sort || (state.image ? "in order" : ORDERS[0]));
  rows = state.image ? firstOfGroups(index, order) : order;
  made = 0;
  id("cards").replaceChildren();
  heads(found);
  filters(found.counts);
  charts.forEach((draw) => draw());
  addCards();
}

function heads(found) {
  const count = (option) => found.rows.filter((row) => optionOf(index, "outcome", row) === option).length;
  const run = state.run || (index.runs.length === 1 ? index.runs[0].name : `${index.runs.length} runs`);
  const where = state.image ? `${state.image}, everywhere` : state.step ? `step ${state.step}` : "all steps";
  id("title").textContent = document.title = printable(`${run} · ${where}`);
  id("count").textContent = `${found.rows.length} episodes, ${count("wrong")} wrong, ${count("right")} right`;
  rebuild(id("steps"), stepControls());
  rebuild(id("outcomes"), CHIPS.map(([facet, option]) => {
    const on = state[facet] === option, name = option === "refused" ? "refused call" : option;
    const press = () => go({ [facet]: on ? "" : option });
    return make("button", { type: "button", "aria-pressed": String(on), onclick: press },
      `${name} ${found.counts[facet].get(option) || 0}`);
  }));
  rebuild(id("sort"), ORDERS.map((name) => make("option", { selected: name === state.sort ? "" : false }, name)));
}

/** The step before, a choice of all, and the step after. From all steps, these are the last and the first. */
function stepControls() {
  const steps = stepsOf(index, state.run), now = state.step ? Number(state.step) : null;
  const before = now === null ? steps.at(-1) : steps.filter((step) => step < now).at(-1);
  const after = now === null ? steps[0] : steps.find((step) => step > now);
  const to = (step, name, text) => make("button", { type: "button", id: name, "aria-label": `step ${name}`,
    disabled: step === undefined ? "" : false, onclick: () => go({ step: String(step) }) }, text);
  return [
    to(before, "before", `‹ ${before === undefined ? "" : before}`),
    make("select", { "aria-label": "step", onchange: (event) => go({ step: event.target.value }) },
      make("option", { value: "" }, "all steps"),
      steps.map((step) => make("option", { value: step, selected: step === now ? "" : false }, step))),
    to(after, "after", `${after === undefined ? "" : after} ›`),
  ];
}

/** Replaces the controls in an element; where one of them had the focus, its successor in the same place has it. */
function rebuild(parent, controls) {
  const inside = () => [...parent.querySelectorAll("button, select, input")];
  const at = inside().indexOf(document.activeElement);
  parent.replaceChildren(...controls);
  if (at >= 0) inside()[at].focus();
}

function filters(counts) {
  const names = Object.keys(index.facets).filter((name) => !["image", "step"].includes(name) && counts[name].size > 1);
  const selects = names.map((name) => make("label", {}, `${name} `,
    make("select", { onchange: (event) => go({ [name]: event.target.value }) }, make("option", { value: "" }, "all"),
      [...counts[name]].sort().map(([option, count]) =>
        make("option", { value: option, selected: state[name] === option ? "" : false }, `${option} (${count})`)))));
  const field = (name, label, kind, step) => make("label", {}, `${label} `, make("input", { type: kind, step, name,
    value: state[name] || "", onchange: (event) => go({ [name]: event.target.value }) }));
  rebuild(id("filters"), [
    ...selects,
    field("least", "reward from", "number", "any"),
    field("most", "to", "number", "any"),
    field("find", "picture", "search"),
    make("button", { type: "button", onclick: () => { location.hash = ""; } }, "all episodes"),
  ]);
  const set = Object.keys(state).filter((name) => name !== "step" && name !== "sort").length;
  id("more").querySelector("summary").textContent = set ? `filters (${set})` : "filters";
}

function addCards() {
  const next = rows.slice(made, made + AT_ONCE);
  made += next.length;
  id("cards").append(...next.map((row) => fill(make("article", { tabindex: 0 }), row)));
  if (!rows.length) id("cards").append(make("p", { class: "muted" }, "No episode passes these filters."));
  id("next").hidden = made >= rows.length;
  id("next").textContent = `${Math.min(AT_ONCE, rows.length - made)} more of ${rows.length - made}`;
}

/** Puts an episode into an article, as soon as its record is there. */
function fill(article, row) {
  const place = placeOf(index, row);
  article.row = row;
  if (!article.hasChildNodes()) article.append(make("p", { class: "muted" }, optionOf(index, "image", row)));
  load(`${place.file}.js`).then((records) => {
    if (article.row !== row) return;
    article.replaceChildren(...card(index, row, records[place.at], (other) => {
      fill(article, other);
      article.focus();
    }));
    article.querySelector(".rest").append(make("p", {},
      make("button", { type: "button", class: "show-tokens", onclick: () => showTokens(article) }, "tokens"), " ",
      make("button", { type: "button", onclick: () => samePicture(article) }, "same picture")));
  }).catch((error) => article.replaceChildren(make("p", { class: "refused" }, error.message)));
  return article;
}

function showTokens(article) {
  const place = placeOf(index, article.row), button = article.querySelector(".show-tokens");
  if (!button) return;
  if (button.getAttribute("aria-pressed") === "true") return fill(article, article.row);
  load(`${place.file}.tokens.js`).then((records) => {
    const turns = records[place.at];
    if (turns === null) button.replaceWith(make("span", { class: "muted" }, "a server played: no tokens are known"));
    else {
      shade(article, turns);
      button.setAttribute("aria-pressed", "true");
    }
  }).catch((error) => button.replaceWith(make("span", { class: "refused" }, error.message)));
}

function samePicture(article) {
  location.hash = new URLSearchParams({ image: optionOf(index, "image", article.row) }).toString();
}

/** A chart of one metric of the runs that are shown; its select chooses another. */
function chart(names, first) {
  const plot = make("div", {});
  const choice = make("select", { "aria-label": "metric", onchange: () => drawCurve(plot, choice.value) },
    names.map((name) => make("option", { selected: name === first ? "" : false }, name)));
  charts.push(() => drawCurve(plot, choice.value));
  return make("div", { class: "curve" }, choice, plot);
}

function drawCurve(plot, name) {
  const isShown = (run) => !state.run || index.runs[run].name === state.run;
  const runs = [...metrics].filter(([run, curves]) => curves[name] && isShown(run));
  const points = runs.map(([run, curves]) => [run, curves.step.map((step, at) => [step, curves[name][at]])
    .filter(([, value]) => value !== null)]);
  const all = points.flatMap(([, list]) => list);
  if (!all.length) return plot.replaceChildren(make("p", { class: "muted" }, "not measured"));
  const [left, right] = range(all.map(([step]) => step)), [low, high] = range(all.map(([, value]) => value));
  const x = (step) => ((step - left) / (right - left || 1)) * 100;
  const y = (value) => 37 - ((value - low) / (high - low || 1)) * 34;
  const lines = points.map(([run, list]) => draw("polyline", { stroke: colourOf(run),
    points: list.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") }));
  const now = Number(state.step);
  const pick = (step) => go({ step: String(nearest(stepsOf(index, state.run), step)) });
  const svg = draw("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img",
    "aria-label": `${name}, steps ${left} to ${right}, from ${low.toPrecision(3)} to ${high.toPrecision(3)}`,
    onclick: (event) => {
      const box = svg.getBoundingClientRect();
      pick(left + ((event.clientX - box.left) / box.width) * (right - left));
    } }, lines, state.step ? draw("line", { x1: x(now), x2: x(now), y1: 0, y2: 40 }) : null);
  plot.replaceChildren(svg, make("div", { class: "range muted" }, make("span", {}, `step ${left}`),
    make("span", {}, `${low.toPrecision(3)} to ${high.toPrecision(3)}`), make("span", {}, `${right}`)));
}

function colourOf(run) {
  return COLOURS[(run + 1) % COLOURS.length];
}

function range(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function nearest(steps, wanted) {
  return steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), steps[0]);
}

async function curves() {
  for (let run = 0; run < index.runs.length; run++) {
    if (index.runs[run].metrics) metrics.set(run, await load(`data/${run}/metrics.js`));
  }
  const names = [...new Set([...metrics.values()].flatMap(Object.keys))].filter((name) => name !== "step").sort();
  if (!names.length) return;
  const first = [...new Set([...CHARTS.filter((name) => names.includes(name)), ...names])].slice(0, CHART_COUNT);
  id("metrics").hidden = false;
  id("metrics").open = innerWidth > NARROW;
  id("curves").replaceChildren(...first.map((name) => chart(names, name)));
  const legend = [...metrics.keys()].map((run) => {
    const name = make("span", {}, `— ${index.runs[run].name} `);
    name.style.color = colourOf(run);
    return name;
  });
  if (legend.length > 1) id("curves").append(make("p", {}, legend));
  charts.forEach((draw) => draw());
}

function move(by) {
  const articles = [...document.querySelectorAll("article")];
  const now = articles.indexOf(document.activeElement.closest("article"));
  const next = articles[Math.max(0, now + by)];
  if (next) next.focus();
  else if (!id("next").hidden) {
    addCards();
    move(by);
  }
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select") && event.key !== "Escape") return;
  const article = document.activeElement.closest("article");
  const keys = {
    ArrowLeft: () => id("before").click(),
    ArrowRight: () => id("after").click(),
    j: () => move(1),
    k: () => move(-1),
    t: () => article && showTokens(article),
    s: () => article && samePicture(article),
    "/": () => {
      id("more").open = true;
      id("filters").querySelector("[name=find]").focus();
    },
    Escape: () => { location.hash = ""; },
  };
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
}

function start(columns) {
  for (const facet of Object.values(columns.facets)) facet.codes = Uint32Array.from(facet.codes);
  index = columns;
  id("sort").addEventListener("change", (event) => go({ sort: event.target.value }));
  id("next").addEventListener("click", addCards);
  addEventListener("hashchange", show);
  addEventListener("keydown", key);
  show();
  curves().catch((error) => id("metrics").replaceWith(make("p", { class: "refused" }, error.message)));
}

load("data/index.js").then(start).catch((error) => { id("count").textContent = error.message; });
