"use strict";
// Two settings of a comparison beside each other, client by client.

const Differences = (() => {
  const { $, h, setText, known, count, percent, score, gain, color } = Base;
  const section = $("#compare-clients");
  const [one, other] = [$(".one", section), $(".other", section)];
  let comparison = null;
  let pairs = []; // {name, difference, here, there}, sorted
  let surface = null;

  /** Every client of runs of both settings that have the same clients. */
  function paired(a, b) {
    const found = [];
    const sign = comparison.measure === "accuracy" ? 1 : -1;
    (a.ground || []).forEach((ground, i) => {
      const j = (b.ground || []).indexOf(ground);
      if (j < 0) return;
      const [here, there] = [a.own[i] || {}, b.own[j] || {}];
      const names = (comparison.names || {})[ground] || {};
      const many = a.runs.length > 1 && b.runs.length > 1;
      for (const [client, value] of Object.entries(here)) {
        if (!known(value) || !known(there[client])) continue;
        const name = names[client] && !/^\d*$/.test(names[client]) ? names[client] : `client ${client}`;
        found.push({ name: many ? `${name}, seed ${a.seeds[i]}` : name, difference: sign * (value - there[client]), here: value, there: there[client] });
      }
    });
    return found.sort((p, q) => p.difference - q.difference);
  }

  const partners = (a) => comparison.groups.filter((b) => b !== a && paired(a, b).length);
  const labelled = (groups) => groups.map((group) => h("option", { value: String(comparison.groups.indexOf(group)) }, group.label));
  const chosen = (select) => comparison.groups[Number(select.value)];

  function fill(select, groups) {
    const before = select.value;
    select.replaceChildren(...labelled(groups));
    if ([...select.options].some((each) => each.value === before)) select.value = before;
  }

  function show(now) {
    comparison = now;
    const able = comparison.groups.filter((a) => partners(a).length);
    section.hidden = able.length < 2;
    if (section.hidden) return;
    if (!surface) {
      surface = new Surface($(".body", section), { draw, hover });
      one.addEventListener("change", update);
      other.addEventListener("change", compare);
    }
    fill(one, able);
    update();
  }

  function update() {
    fill(other, partners(chosen(one)));
    compare();
  }

  function compare() {
    const [a, b] = [chosen(one), chosen(other)];
    pairs = paired(a, b);
    const better = pairs.filter((p) => p.difference > 0).length;
    const worse = pairs.filter((p) => p.difference < 0).length;
    const mean = pairs.reduce((sum, p) => sum + p.difference, 0) / (pairs.length || 1);
    setText($(".note", section), `With ${a.label}, ${count(better)} of ${count(pairs.length)} clients (${percent(better / (pairs.length || 1), 0)}) are better off than with ${b.label}, ` +
      `${count(worse)} are worse off; the mean difference is ${gain(comparison.measure, mean)}.`);
    surface.describe(`Difference of each client, sorted. ${$(".note", section).textContent}`);
    surface.redraw();
  }

  const box = (width, height) => ({ left: 62, top: 10, width: width - 70, height: height - 34 });

  function draw(ctx, width, height) {
    if (!pairs.length) return;
    const b = box(width, height);
    const [low, high] = [Math.min(0, pairs[0].difference), Math.max(0, pairs[pairs.length - 1].difference)];
    const room = (high - low || 1) * 0.05;
    const y = [low - room, high + room];
    Draw.axes(ctx, b, { y, yText: (v) => gain(comparison.measure, v, high - low < 0.05 ? 1 : 0) });
    const at = (v) => b.top + b.height - ((v - y[0]) / (y[1] - y[0])) * b.height;
    const wide = b.width / pairs.length;
    const gap = wide > 6 ? 2 : wide > 3 ? 1 : 0;
    const step = Math.max(1, Math.floor(1 / wide / 2)); // no more bars than half pixels
    for (let i = 0; i < pairs.length; i += step) {
      const { difference } = pairs[i];
      ctx.fillStyle = color(difference < 0 ? "--s-worst" : "--s-clients");
      ctx.fillRect(b.left + i * wide, Math.min(at(0), at(difference)), Math.max(0.7, wide * step - gap), Math.max(0.5, Math.abs(at(difference) - at(0))));
    }
    ctx.strokeStyle = ctx.fillStyle = color("--muted");
    Draw.line(ctx, b.left, at(0), b.left + b.width, at(0));
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    ctx.fillText(`${count(pairs.length)} clients, sorted`, b.left + b.width / 2, b.top + b.height + 8);
  }

  function hover(x) {
    const b = box(surface.host.clientWidth, surface.host.clientHeight);
    const pair = pairs[Math.floor(((x - b.left) / b.width) * pairs.length)];
    if (!pair) return null;
    const s = (v) => score(comparison.measure, v);
    return [pair.name, `${chosen(one).label}: ${s(pair.here)}`, `${chosen(other).label}: ${s(pair.there)}`, `difference ${gain(comparison.measure, pair.difference)}`];
  }

  return { show };
})();
