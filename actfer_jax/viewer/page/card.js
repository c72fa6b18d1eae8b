// An episode as a card. Text of a policy only ever becomes the text of a node: no markup is read from data.

const COLOURS = ["#d9480f", "#0b7285", "#7b2cbf", "#2b8a3e", "#b58900", "#c2255c"];
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (`on*`: listeners), and with elements and texts in it. */
function make(tag, attributes, ...content) {
  return filled(document.createElement(tag), attributes, content);
}

function draw(tag, attributes, ...content) {
  return filled(document.createElementNS(SVG, tag), attributes, content);
}

function filled(element, attributes, content) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const part of content.flat()) {
    if (part instanceof Node) element.append(part);
    else if (part !== null && part !== undefined) element.append(printable(String(part)));
  }
  return element;
}

/** The text without characters that are not seen, or that could turn the order of what stands beside them. */
function printable(text) {
  return text.replace(/[^\P{C}\n\t]|\p{Zl}|\p{Zp}/gu, "\ufffd");
}

function shown(value) {
  return value === null || value === undefined ? "none" : value.toFixed(2);
}

/** The content of a card, of a record and its row of the index. `open` shows another row in its place. */
function card(index, row, record, open) {
  const run = index.runs.findIndex(({ name }) => name === optionOf(index, "run", row));
  const source = (name) => `pictures/${run}/${name}`;
  const views = record.turns.map((turn) => turn.view).filter(Boolean);
  const colours = new Map(views.map((view, number) => [view, COLOURS[number % COLOURS.length]]));
  return [
    heading(index, row, record),
    make("div", { class: "episode" },
      make("div", { class: "seen" }, scenes(record, source, colours)),
      make("div", { class: "said" }, answer(index, row, record), units(record), turns(record, source, colours))),
    make("p", { class: "muted" }, summary(record)),
    make("div", { class: "foot" }, rewards(record), make("div", { class: "rest" }, group(index, row, open))),
  ];
}

function heading(index, row, record) {
  const several = index.runs.length > 1 ? `${optionOf(index, "run", row)} · ` : "";
  const notes = [optionOf(index, "control", row), ...(record.reference.strata || [])].filter(Boolean).join(", ");
  return make("h2", {}, record.image, " ", make("small", {},
    `${several}step ${optionOf(index, "step", row)} · episode ${record.id}${notes ? ` · ${notes}` : ""}`));
}

function scenes(record, source, colours) {
  const scenes = record.scenes || [record.scene];
  return scenes.map((scene, number) => {
    const [[width, , left], [, height, top]] = scene.to_original;
    const box = [left, top, width * scene.size[0], height * scene.size[1]];
    const of = [...colours].filter(([view]) => (view.of || 0) === number);
    const name = scenes.length > 1 ? `picture ${number + 1} of ${scenes.length}` : "the picture";
    return make("figure", { class: "frame" },
      picture(source(record.images[scene.picture]), scene, `${name}; outlines: ${of.length}`),
      draw("svg", { viewBox: box.join(" "), preserveAspectRatio: "none", "aria-hidden": "true" },
        of.flatMap(([view, colour]) => outline(view, colour))));
  });
}

/** The corners of a view in its image, as a white line with a coloured one on it. */
function outline(view, colour) {
  const [width, height] = view.size, [[a, b, c], [d, e, f]] = view.to_original;
  const points = [[0, 0], [width, 0], [width, height], [0, height]]
    .map(([x, y]) => `${a * x + b * y + c},${d * x + e * y + f}`).join(" ");
  return [draw("polygon", { points, stroke: "#fff", class: "halo" }), draw("polygon", { points, stroke: colour })];
}

function picture(src, view, alt) {
  const small = Math.max(...view.size) < 160 ? "coarse" : false;
  return make("img", { src, alt, width: view.size[0], height: view.size[1], loading: "lazy", class: small });
}

/** The levels of the reward as bars, with their numbers. */
function rewards(record) {
  if (!record.reward) return null;
  return make("dl", { class: "rewards" }, Object.entries(record.reward).map(([level, value]) => {
    const bar = make("i", {});
    bar.style.height = `${Math.max(0, Math.min(1, value)) * 26 + 1}px`;
    return make("div", {}, make("dt", {}, level), make("dd", {}, bar, value.toFixed(2)));
  }));
}

function group(index, row, open) {
  const rows = groupOf(index, row);
  if (rows.length < 2) return null;
  return make("p", { class: "group" }, make("span", {}, `group of ${rows.length}`), " ", rows.map((other, number) => {
    const outcome = optionOf(index, "outcome", other), looked = optionOf(index, "looked", other);
    const label = `rollout ${number + 1}: ${outcome}, ${looked}, reward ${shown(index.reward[other])}, ` +
      `advantage ${shown(index.advantage[other])}`;
    const kind = `dot ${outcome.replace(" ", "-")} ${looked === "looked" ? "square" : ""}`;
    return make("button", { type: "button", class: kind, title: label, "aria-label": label,
      "aria-current": other === row ? "true" : false, onclick: () => open(other) });
  }));
}

function answer(index, row, record) {
  const outcome = optionOf(index, "outcome", row), truth = record.reference.emotion;
  const said = record.failure ? "failed" : record.prediction.emotion
    || (record.prediction.aus === null ? "no answer" : truth ? "no emotion" : "action units");
  return make("p", { class: `answer ${outcome.replace(" ", "-")}` }, make("b", {}, said), " ",
    make("small", {}, truth ? `truth: ${truth}` : ""),
    record.failure ? make("span", { class: "refused" }, record.failure) : null);
}

/** Action units: named and there (hit), there and not named (missed), named and not there (extra). */
function units(record) {
  const named = record.prediction.aus || [], { aus, known_aus: known } = record.reference;
  const all = [...new Set([...named, ...(aus || [])])].sort((a, b) => a - b);
  const kind = (unit) => {
    if (aus === null || (known && !known.includes(unit))) return "unknown";
    return !aus.includes(unit) ? "extra" : named.includes(unit) ? "hit" : "missed";
  };
  const titles = { hit: "named, and there", missed: "there, and not named", extra: "named, and not there",
    unknown: "named; not annotated" };
  const from = record.reference.aus_from ? make("li", { class: "muted" }, `by ${record.reference.aus_from}`) : null;
  return all.length ? make("ul", { class: "units" },
    all.map((unit) => make("li", { class: kind(unit), title: titles[kind(unit)] }, `AU${unit}`,
      make("span", { class: "unseen" }, ` ${titles[kind(unit)]}`))), from) : null;
}

function turns(record, source, colours) {
  return make("ol", { class: "turns" }, record.turns.map((turn, number) => make("li", { "data-turn": number },
    make("div", { class: "words" }, turn.thought === null ? make("pre", {}, turn.text) : make("p", {}, turn.thought)),
    turn.call ? call(turn.call) : null,
    turn.error ? make("p", { class: "refused" }, turn.error) : null,
    turn.truncated ? make("p", { class: "refused" }, "cut at the length limit") : null,
    turn.reply ? make("p", { class: turn.reply.ok ? "muted" : "refused" }, turn.reply.text) : null,
    turn.view ? view(record, turn.view, source, colours) : null)));
}

function view(record, view, source, colours) {
  const image = picture(source(record.images[view.picture]), view, view.name);
  image.style.borderColor = colours.get(view);
  image.style.width = `${Math.min(120, (110 * view.size[0]) / view.size[1])}px`;
  return image;
}

/** A call in Python's form; on a narrow card its lines break after "(", "=" and ",". */
function call({ name, arguments: given }) {
  const parts = Object.entries(given).map(([key, value]) => [`${key}=`, JSON.stringify(value)]);
  const texts = parts.flatMap(([key, value], number) => [key, number < parts.length - 1 ? `${value}, ` : value]);
  return make("code", {}, [`${name}(`, ...texts].flatMap((text) => [text, make("wbr")]), ")");
}

function summary(record) {
  const told = { zoom: "told to zoom", answer: "told to answer" }[record.forced];
  const confidence = record.confidence === null || record.confidence === undefined ? null
    : `probability of the answer ${shown(record.confidence)}`;
  return [`reward ${shown(record.reward ? record.reward.total : null)}`, `advantage ${shown(record.advantage)}`,
    record.arm, told, confidence].filter(Boolean).join(" · ");
}

/** The words of each turn as its tokens, the darker the less likely; `turns` is the record's entry of a .tokens.js. */
function shade(article, turns) {
  article.querySelector(".turns").classList.add("shaded");
  article.querySelectorAll("[data-turn] .words").forEach((words, number) => {
    const tokens = turns[number] || [];
    words.replaceChildren(make("p", { class: "tokens" }, tokens.map(([text, id, logprob]) => {
      const token = make("span", { title: `token ${id}, probability ${Math.exp(logprob).toPrecision(3)}` },
        text === null ? `${id} ` : text);
      token.style.backgroundColor = `rgba(217, 72, 15, ${Math.min(0.85, -logprob / 4)})`;
      return token;
    })));
  });
}
