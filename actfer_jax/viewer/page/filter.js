"use strict";
// Which episodes pass the filters, and in what order. Pure functions over the columns of the index (viewer/columns.py).
// A state has an option for each facet that is set, and perhaps `find`, `least`, `most` and `sort`.

const ORDERS = ["wrong first", "lowest advantage", "highest advantage", "lowest reward", "highest reward", "in order"];
const BADNESS = ["wrong", "no answer", "failed", "not judged", "right"];

/** For each code of a facet, whether the state lets it through; null where the facet is not set. */
function allowed(name, facet, state) {
  if (name === "image" && state.find && !state.image) {
    const words = state.find.toLowerCase();
    return facet.values.map(([image]) => image.toLowerCase().includes(words));
  }
  return state[name] ? facet.values.map((options) => options.includes(state[name])) : null;
}

function inRange(value, state) {
  if (!state.least && !state.most) return true;
  if (value === null) return false;
  return (!state.least || value >= Number(state.least)) && (!state.most || value <= Number(state.most));
}

/**
 * The numbers of the episodes that pass (`rows`), and for each facet a map from its options to how many episodes would
 * pass if that option were chosen (`counts`): those that pass all other filters.
 */
function select(index, state) {
  const names = Object.keys(index.facets);
  const codes = names.map((name) => index.facets[name].codes);
  const lets = names.map((name) => allowed(name, index.facets[name], state));
  const set = names.map((_, facet) => facet).filter((facet) => lets[facet] !== null);
  const tallies = names.map((name) => new Uint32Array(index.facets[name].values.length));
  const rows = [];
  for (let row = 0; row < index.reward.length; row++) {
    if (!inRange(index.reward[row], state)) continue;
    let failed = -1, failures = 0;
    for (const facet of set) {
      if (!lets[facet][codes[facet][row]]) {
        failed = facet;
        if (++failures > 1) break;
      }
    }
    if (failures === 0) {
      rows.push(row);
      for (let facet = 0; facet < names.length; facet++) tallies[facet][codes[facet][row]]++;
    } else if (failures === 1) tallies[failed][codes[failed][row]]++;
  }
  const counts = {};
  names.forEach((name, facet) => (counts[name] = byOption(index.facets[name].values, tallies[facet])));
  return { rows, counts };
}

function byOption(values, tally) {
  const counts = new Map();
  values.forEach((options, code) => {
    for (const option of options) counts.set(option, (counts.get(option) || 0) + tally[code]);
  });
  return counts;
}

/** The rows in one of `ORDERS`; what has no number comes last. */
function sorted(index, rows, order) {
  const compare = comparison(index, order);
  return compare ? rows.slice().sort((a, b) => compare(a, b) || a - b) : rows;
}

function comparison(index, order) {
  const ascending = (column) => (a, b) => number(column[a], Infinity) - number(column[b], Infinity) || 0;
  const descending = (column) => (a, b) => number(column[b], -Infinity) - number(column[a], -Infinity) || 0;
  switch (order) {
    case "lowest advantage": return ascending(index.advantage);
    case "highest advantage": return descending(index.advantage);
    case "lowest reward": return ascending(index.reward);
    case "highest reward": return descending(index.reward);
    case "in order": return null;
  }
  const { values, codes } = index.facets.outcome;
  const badness = values.map(([outcome]) => BADNESS.indexOf(outcome));
  const advantage = ascending(index.advantage), reward = ascending(index.reward);
  return (a, b) => badness[codes[a]] - badness[codes[b]] || advantage(a, b) || reward(a, b);
}

function number(value, missing) {
  return value === null ? missing : value;
}

/** The option of a row in a facet of one option; "" without. */
function optionOf(index, name, row) {
  const { values, codes } = index.facets[name];
  return values[codes[row]][0] || "";
}

/** The rollouts of one query: episodes of the same picture in the same step, run and control. */
function groupOf(index, row) {
  const columns = ["image", "step", "run", "control"].map((name) => index.facets[name].codes);
  const same = [];
  for (let other = 0; other < index.reward.length; other++) {
    if (columns.every((codes) => codes[other] === codes[row])) same.push(other);
  }
  return same;
}

/** The first episode of each group among the rows. */
function firstOfGroups(index, rows) {
  const columns = ["image", "step", "run", "control"].map((name) => index.facets[name].codes);
  const seen = new Set();
  return rows.filter((row) => {
    const key = columns.map((codes) => codes[row]).join();
    return !seen.has(key) && seen.add(key);
  });
}

/** The file of a row's record, and its place there. */
function placeOf(index, row) {
  let part = 0, first = 0;
  while (row >= first + index.shards[part][1]) first += index.shards[part++][1];
  const chunk = Math.floor((row - first) / index.chunk);
  return { file: `data/${index.shards[part][0]}/${chunk}`, at: (row - first) % index.chunk };
}

/** The steps that have episodes, of one run or of all, in order. */
function stepsOf(index, run) {
  const steps = new Set();
  for (let row = 0; row < index.reward.length; row++) {
    if (!run || optionOf(index, "run", row) === run) steps.add(index.facets.step.codes[row]);
  }
  return [...steps].map((code) => Number(index.facets.step.values[code][0])).sort((a, b) => a - b);
}
