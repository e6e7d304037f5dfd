"use strict";
// The panels of one run. Each is made once, in its section of the page, and updated from the run as it is now.

const Panels = (() => {
  const { $, h, known, color, count, bytes, joules, duration } = Base;
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

  /** A table of texts; the first cell of a row names it. */
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

  // --- what curves run over -------------------------------------------------------------------------------

  const AXES = { // methods, and paces, differ in what a round costs
    rounds: { label: "Rounds", x: "round", text: count, whole: true, of: (r) => r.round },
    virtual_seconds: { label: "Virtual time", x: "virtual time", text: duration, of: (r) => (r.clock ? r.clock.ended : null) },
    energy: { label: "Energy", x: "energy", text: joules, of: (r) => (r.clock ? r.allEnergy : null) },
    epsilon: { label: "Privacy spent", x: "epsilon at most", text: (v) => Base.number(v, 3), of: (r) => (r.spent ? r.spent.epsilon : null) },
    bytes: { label: "Traffic", x: "after", text: (v) => bytes(v), of: (r) => r.allUp + r.allDown },
    seconds: { label: "Time", x: "after", text: duration, of: (r) => r.allSeconds },
  };

  /** The axes that a run has (or several have), by name. Where there is a virtual clock, the machine's time is called so. */
  function axes({ clocked, blurred, counted }) {
    const found = { ...AXES, seconds: clocked ? { ...AXES.seconds, label: "Machine time", x: "machine time" } : AXES.seconds };
    if (!clocked) { delete found.virtual_seconds; delete found.energy; }
    if (!blurred) delete found.epsilon;
    if (!counted) delete found.bytes;
    return found;
  }

  // --- bars of rounds -------------------------------------------------------------------------------------

  /** Bars with several kinds of something on top of each other, a round or several each: `kinds` are [name, words, colour].
   *
   * Gives a function that takes a row {round, name: number, ...} a round, and what to say of the picture. */
  function stacked(section, kinds, { text = count, whole = true, left = 34 } = {}) {
    let rows = [];
    let bars = [];
    const surface = new Surface($(".mid", section), { draw, hover });
    legend($(".key", section), kinds);
    const box = (width, height) => ({ left, top: 8, width: width - left - 8, height: height - 34 });

    function draw(ctx, width, height) {
      if (!rows.length) return;
      const b = box(width, height);
      const each = Math.max(1, Math.ceil(rows.length / Math.max(1, Math.floor(b.width / 3))));
      bars = [];
      for (let i = 0; i < rows.length; i += each) {
        const found = rows.slice(i, i + each);
        const sums = kinds.map(([name]) => [name, found.reduce((n, row) => n + row[name], 0)]);
        bars.push({ first: found[0].round, last: found[found.length - 1].round, ...Object.fromEntries(sums) });
      }
      const high = Math.max(...bars.map((bar) => kinds.reduce((n, [name]) => n + bar[name], 0))) || 1;
      const top = whole ? Math.max(1, high) : high;
      Draw.axes(ctx, b, { y: [0, top * 1.04], yText: text, yTicks: Base.ticks(0, top, Math.max(2, b.height / 44), whole) });
      const wide = b.width / bars.length;
      bars.forEach((bar, i) => {
        let y = b.top + b.height;
        for (const [name, , paint] of kinds) {
          const tall = (bar[name] / (top * 1.04)) * b.height;
          ctx.fillStyle = color(paint);
          ctx.fillRect(b.left + i * wide, y - tall, Math.max(1, wide - (wide > 5 ? 2 : 0)), tall);
          y -= tall;
        }
      });
      ctx.fillStyle = color("--muted");
      ctx.textBaseline = "top";
      ctx.fillText(`round ${bars[0].first}`, b.left, b.top + b.height + 8);
      ctx.textAlign = "right";
      ctx.fillText(String(bars[bars.length - 1].last), b.left + b.width, b.top + b.height + 8);
    }

    function hover(x) {
      const b = box(surface.host.clientWidth, surface.host.clientHeight);
      const bar = bars[Math.floor(((x - b.left) / b.width) * bars.length)];
      if (!bar) return null;
      return [bar.first === bar.last ? `round ${bar.first}` : `rounds ${bar.first} to ${bar.last}`, ...kinds.map(([name, words]) => `${text(bar[name])} ${words}`)];
    }

    return (next, words) => {
      rows = next;
      surface.describe(words);
      surface.redraw();
    };
  }

  /** What colours mean. */
  function legend(host, kinds) {
    host.replaceChildren(...kinds.map(([, words, paint, shape]) => {
      const dot = h("i", { class: `dot ${shape || ""}` });
      dot.style.setProperty("--paint", `var(${paint})`);
      return h("span", { class: "keyed" }, dot, words);
    }));
  }

  const measureName = (run) => (run.measure === "accuracy" ? "accuracy" : "loss");

  /** Up to `n` places of an array by value, the smallest first; NaN left out. */
  function smallest(values, n) {
    const places = [];
    for (let i = 0; i < values.length; i++) if (known(values[i])) places.push(i);
    return places.sort((a, b) => values[a] - values[b]).slice(0, n);
  }

  return { all, panel, axes, stacked, legend, tableOf, table, clientList, measureName, smallest, LISTED };
})();
