"use strict";
// What parties know of columns in the end: what each is worth to the model, or tells of the label.

(() => {
  const { $, h, setText, segments, known, number, ramp, shade, inkOn } = Base;
  const { panel, tableOf, LISTED } = Panels;
  const SHOWN = 15; // bars of a party
  const MATRIX = 24; // columns of the picture of correlations
  const NAMES = { gain: "Gain", splits: "Splits", iv: "IV", vif: "VIF", weight: "Weight" };
  const MEANT = {
    gain: "Gain: by how much all splits on a column have lowered the loss.",
    splits: "Splits: how many of the model’s are on a column.",
    weight: "Weight: of a column that is brought to mean 0 and deviation 1.",
    iv: "IV: how much the bins of a column tell of the label; below 0.02 next to nothing, above 0.5 suspiciously much.",
    vif: "VIF: 1 where other columns tell nothing of a column; infinite where they tell all.",
  };
  const named = (name) => NAMES[name] || name;
  const meant = (name) => MEANT[name] || (name.startsWith("weight") ? `${named(name)}: of a column that is brought to mean 0 and deviation 1.` : "");
  const text = (value) => (known(value) ? number(value, 4).replace("-", "−") : "infinite");
  const size = (value) => (known(value) ? Math.abs(value) : Infinity);

  /** Bars of a figure, the largest at the top; one below 0 has another colour. */
  function bars(party, name, most) {
    const values = party.figures[name];
    const order = party.columns.map((_, at) => at).sort((a, b) => size(values[b]) - size(values[a]) || a - b).slice(0, SHOWN);
    return h("ol", { class: "clients worth" }, order.map((at) => {
      const bar = h("i", { class: "bar" });
      bar.style.setProperty("--part", `${Math.min(100, (100 * size(values[at])) / most)}%`);
      bar.style.setProperty("--paint", `var(${values[at] < 0 ? "--s-worst" : "--s-personal"})`);
      return h("li", null, h("span", { class: "who", title: party.columns[at] }, party.columns[at]), h("span", { class: "bars" }, bar), h("b", null, text(values[at])));
    }));
  }

  function matrix(party) {
    const names = party.columns.slice(0, MATRIX);
    const { css } = ramp("both");
    const cell = (value) => {
      const paint = css[shade(value, -1, 1)];
      const found = h("td", null, value.toFixed(2).replace("-", "−"));
      found.style.background = paint;
      found.style.color = inkOn(paint);
      return found;
    };
    return h("table", { class: "correlations" },
      h("thead", null, h("tr", null, h("td"), names.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, names.map((name, i) => h("tr", null, h("th", { scope: "row" }, name), names.map((_, j) => cell(party.correlations[i][j]))))));
  }

  panel("columns", (run) => Boolean(run.ending && run.ending.features && run.ending.features.length), (section) => {
    const body = $(".halves", section);
    const tools = $(".figure", section);
    let chosen = null;
    let shape = "";
    const fillTable = tableOf(section, (run) => {
      const names = figures(run.ending.features);
      return {
        head: ["Column", "Who knows it", ...names.map(named)],
        rows: run.ending.features.flatMap((party) => party.columns.map((column, at) => [column, party.party,
          ...names.map((name) => (party.figures[name] ? text(party.figures[name][at]) : "–"))])).slice(0, LISTED + 1),
      };
    });

    const figures = (parties) => [...new Set(parties.flatMap((party) => Object.keys(party.figures)))];

    function update(run) {
      const parties = run.ending.features;
      const names = figures(parties);
      const name = names.includes(chosen) ? chosen : names[0];
      const now = JSON.stringify([name, parties]);
      if (now === shape) return;
      shape = now;
      tools.hidden = names.length < 2;
      segments(tools, names.map((each) => [each, named(each)]), name, (value) => { chosen = value; update(run); });
      const told = parties.filter((party) => party.figures[name] && party.columns.length);
      const most = Math.max(0, ...told.flatMap((party) => party.figures[name]).filter(known).map(size)) || 1;
      body.replaceChildren(...told.map((party) =>
        h("div", null, h("h3", null, `What ${party.party} knows`), bars(party, name, most),
          party.columns.length > SHOWN ? h("p", { class: "note" }, `The first ${SHOWN} of ${party.columns.length}.`) : null)));
      const joined = parties.find((party) => party.correlations);
      const host = $(".matrix", section);
      host.hidden = !joined;
      if (joined) host.replaceChildren(h("h3", null, `Correlations, as ${joined.party} knows them`), h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Correlations" }, matrix(joined)));
      setText($(".note.meant", section), meant(name));
      fillTable(run);
    }
    return update;
  });
})();
