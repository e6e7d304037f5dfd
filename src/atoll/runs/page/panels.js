"use strict";
// The panels of one run. Each is made once, in its section of the page, and updated from the run as it is now.

const Panels = (() => {
  const { h, known, color, count } = Base;
  const LISTED = 200; // rows of a table; more help nobody
  const all = [];

  /** Register a panel: `has(run)` says whether the run can have it, `make(section, open)` gives its update(run). */
  function panel(id, has, make) { all.push({ id, has, make }); }

  // --- parts ----------------------------------------------------------------------------------------------

  /** The numbers behind a picture, for those who prefer them or cannot see it; built when it is opened. */
  function tableOf(section, build) {
    const scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" });
    const details = h("details", { class: "data" }, h("summary", null, "As a table"), scroll);
    section.append(details);
    let run = null;
    const fill = () => {
      if (!details.open || !run) return;
      const { head, rows } = build(run);
      scroll.replaceChildren(table(head, rows.slice(0, LISTED)));
      if (rows.length > LISTED) scroll.append(h("p", { class: "note" }, `The first ${LISTED} of ${count(rows.length)}.`));
    };
    details.addEventListener("toggle", fill);
    return (now) => { run = now; fill(); };
  }

  function table(head, rows) {
    return h("table", null,
      h("thead", null, h("tr", null, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, i) => (i ? h("td", null, cell) : h("th", { scope: "row" }, cell)))))));
  }

  /** Links to clients, each with a bar and a text; `full` is the value of a full bar, unless one is longer. */
  function clientList(host, rows, empty, open, full = 0) {
    if (!rows.length) { host.replaceChildren(h("p", { class: "empty small" }, empty)); return; }
    const most = Math.max(full, ...rows.map((row) => Math.abs(row.bar))) || 1;
    host.replaceChildren(h("ol", { class: "clients" }, rows.map((row) => {
      const bar = h("i", { class: "bar" });
      bar.style.setProperty("--part", `${(Math.abs(row.bar) / most) * 100}%`);
      if (row.paint) bar.style.setProperty("--paint", color(row.paint));
      return h("li", null, h("button", { type: "button", onclick: () => open(row.client) },
        h("span", { class: "who" }, row.name), h("span", { class: "bars" }, bar), h("b", null, row.text)));
    })));
  }

  const measureName = (run) => (run.measure === "accuracy" ? "accuracy" : "loss");

  /** Up to `n` places of an array by value, the smallest first; NaN left out. */
  function smallest(values, n) {
    const places = [];
    for (let i = 0; i < values.length; i++) if (known(values[i])) places.push(i);
    return places.sort((a, b) => values[a] - values[b]).slice(0, n);
  }

  return { all, panel, tableOf, table, clientList, measureName, smallest, LISTED };
})();
