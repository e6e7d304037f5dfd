"use strict";
// Several runs: the list of a directory, and the comparison.

const { RunList, Comparison } = (() => {
  const { $, h, setText, known, number, count, percent, score, tickScore, gain, bytes, joules, duration, clock, plural, groupColor } = Base;

  function pillOf(status) {
    const element = h("span", null);
    Hero.pill(element, status);
    return element;
  }

  // --- the list -------------------------------------------------------------------------------------------

  const RunList = (() => {
    const rows = new Map();
    const chosen = new Set();
    let body = null;

    function show(runs, place, hrefs) {
      const table = $("#list-table");
      if (!body) {
        body = h("tbody");
        table.append(h("thead", null, h("tr", null, h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Compare")),
          ...["Run", "Method", "Data", "Status", "Rounds", "Client mean"].map((text) => h("th", { scope: "col", class: text === "Client mean" ? "right" : null }, text)))), body);
        $("#list-filter").addEventListener("input", filter);
        $("#list-compare").addEventListener("click", () => { location.hash = hrefs.compare([...chosen]); });
      }
      setText($("#list-lede"), runs.length ? `${plural(runs.length, "run")} in ${place}` : place);
      $("#list-empty").hidden = runs.length > 0;
      table.hidden = !runs.length;
      const names = new Set(runs.map((run) => run.name));
      for (const [name, row] of rows) if (!names.has(name)) { row.element.remove(); rows.delete(name); chosen.delete(name); }
      runs.forEach((run, i) => {
        if (!rows.has(run.name)) rows.set(run.name, make(run, hrefs));
        const row = rows.get(run.name);
        fill(row, run);
        if (body.children[i] !== row.element) body.insertBefore(row.element, body.children[i] || null);
      });
      filter();
      tell();
    }

    function make(run, hrefs) {
      const cells = Object.fromEntries(["method", "data", "status", "rounds", "value"].map((key) => [key, h("td", { class: key === "value" ? "value right" : key })]));
      cells.value.dataset.label = "client mean";
      const bar = h("i");
      const text = h("span");
      cells.rounds.append(h("span", { class: "mini" }, bar), text);
      const pill = h("span");
      cells.status.append(pill);
      const box = h("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, onchange: () => {
        if (box.checked) chosen.add(run.name); else chosen.delete(run.name);
        tell();
      } });
      const when = h("small");
      const element = h("tr", null, h("td", null, box), h("th", { scope: "row" }, h("a", { href: hrefs.run(run.name) }, run.name), when), ...Object.values(cells));
      return { element, cells, bar, text, pill, when };
    }

    function fill(row, run) {
      setText(row.when, clock(run.time));
      setText(row.cells.method, run.method || "–");
      setText(row.cells.data, [run.data, run.partition].filter(Boolean).join(", ") || "–");
      Hero.pill(row.pill, run.status);
      row.bar.style.width = `${run.rounds ? Math.min(100, (100 * run.round) / run.rounds) : 0}%`;
      setText(row.text, `${count(run.round)} of ${run.rounds ? count(run.rounds) : "–"}`);
      setText(row.cells.value, run.measure && run.measure !== "accuracy" ? `${number(run.value)} loss` : score("accuracy", run.value));
      row.element.dataset.text = [run.name, run.method, run.data, run.partition, run.status].join(" ").toLowerCase();
    }

    function filter() {
      const words = $("#list-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const { element } of rows.values()) element.hidden = !words.every((word) => element.dataset.text.includes(word));
    }

    function tell() {
      const button = $("#list-compare");
      button.disabled = chosen.size < 2;
      setText(button, chosen.size < 2 ? "Compare (choose two or more)" : `Compare ${chosen.size} runs`);
    }

    return { show };
  })();

  // --- the comparison -------------------------------------------------------------------------------------

  const Comparison = (() => {
    let axis = "rounds";
    let lines = null;
    let shown = null;

    const clocked = () => shown.groups.some((group) => (group.curve.virtual_seconds || []).length);
    const blurred = () => shown.groups.some((group) => (group.curve.epsilon || []).length);
    const axes = () => Panels.axes({ clocked: clocked(), blurred: blurred(), counted: true });

    /** What the curves show, in words. */
    function measureOf({ measure, shown: what, groups }) {
      if (what === "own") return `mean ${measure} over clients`;
      return groups.some((group) => known((group.table.global || {}).mean)) ? `${measure} on the test set` : measure;
    }

    /** A comparison in which every run stands for itself, for when none was made. */
    function ofRuns(runs) {
      const measure = runs.length ? runs[0].measure : "accuracy";
      const judges = runs.some((run) => run.judgedLast && run.ownOf(run.judgedLast.evaluation));
      const groups = runs.map((run) => {
        const judged = run.rounds.filter((r) => r.evaluation && known(run.mainOf(r.evaluation)));
        const mean = judged.map((r) => run.mainOf(r.evaluation));
        const last = run.judgedLast ? run.judgedLast.evaluation : { overall: {}, clients: {}, personal: {} };
        const c = last.clients[measure] || {};
        const own = last.personal[measure] || c;
        const one = (value) => (known(value) ? { mean: value, std: null } : null);
        return {
          label: `${run.title} · ${run.name}`, runs: [run.name], seeds: [run.start.seed],
          curve: { rounds: judged.map((r) => r.round), mean, low: [], high: [], each: [mean], bytes: judged.map((r) => r.allUp + r.allDown), seconds: judged.map((r) => r.allSeconds), virtual_seconds: run.clocked ? judged.map((r) => r.clock.ended) : [], energy: run.clocked ? judged.map((r) => r.allEnergy) : [], epsilon: run.blurred ? judged.map((r) => r.spent.epsilon) : [] },
          ...(run.blurred ? { private: run.promised.private, delta: run.promised.delta } : {}),
          table: {
            global: one(last.overall[measure]), client_mean: one(c.mean), personal: one((last.personal[measure] || {}).mean), own: one(own.mean),
            p10: one(run.lowIsGood ? own.p90 : own.p10), worst: one(run.lowIsGood ? own.max : own.min), rounds: one(run.played),
            bytes: one(run.last ? run.last.allUp + run.last.allDown : null), seconds: one(run.seconds), virtual_seconds: one(run.clocked ? run.last.clock.ended : null), energy: one(run.clocked ? run.last.allEnergy : null), epsilon: one(run.blurred ? run.promised.epsilon : null),
          },
        };
      });
      return { measure, shown: judges ? "own" : measure, target: null, groups };
    }

    function show(title, comparison, runs, hrefs) {
      shown = comparison;
      setText($("#compare-title"), title);
      const n = comparison.groups.reduce((sum, group) => sum + group.runs.length, 0);
      setText($("#compare-lede"), `${plural(comparison.groups.length, "setting")}, ${plural(n, "run")}` +
        (known(comparison.target) ? ` · target ${score(comparison.measure, comparison.target)}` : ""));
      const box = $("#compare-each");
      if (!lines) {
        lines = new Lines($("#compare-curves .body"), { label: "Learning curves", carry: true });
        box.addEventListener("change", () => curves());
      }
      const all = Object.entries(axes()).map(([key, { label }]) => [key, label]);
      const host = $("#compare-curves .axis");
      if (host.children.length !== all.length) {
        if (!axes()[axis]) axis = "rounds";
        Base.segments(host, all, axis, (key) => { axis = key; lines.zoom = null; curves(); });
      }
      Differences.show(comparison);
      box.parentNode.hidden = !comparison.groups.some((group) => group.runs.length > 1);
      curves();
      table();
      runTable(runs, hrefs);
    }

    function curves() {
      const { groups, measure, target } = shown;
      const each = $("#compare-each").checked;
      const { x, text, whole = false } = axes()[axis];
      const places = (group) => group.curve[axis] || [];
      const xs = [...new Set(groups.flatMap(places))].sort((a, b) => a - b);
      Object.assign(lines, { x, xText: text, whole });
      const place = new Map(xs.map((x, i) => [x, i]));
      const spread = (rounds, values) => {
        const found = new Array(xs.length).fill(null);
        rounds.forEach((x, i) => { if (known((values || [])[i])) found[place.get(x)] = values[i]; });
        return found;
      };
      const series = [];
      const dashes = [[], [8, 3], [2, 3], [10, 3, 2, 3]];
      groups.forEach((group, g) => {
        const { mean, low, high } = group.curve;
        const rounds = places(group);
        if (!rounds.length) return; // it has no virtual clock, or nothing is blurred
        const paint = groupColor(g);
        const dash = dashes[Math.floor(g / 8) % dashes.length];
        if (group.runs.length > 1 && !each && (low || []).some(known)) series.push({ label: `${group.label}, band`, color: paint, low: spread(rounds, low), high: spread(rounds, high), alpha: 0.13, of: group.label });
        if (each) (group.curve.each || []).forEach((values, i) => series.push({ label: `${group.label}, seed ${(group.seeds || [])[i] ?? i}`, color: paint, values: spread(rounds, values), width: 1, dash, of: group.label }));
        series.push({ label: group.label, color: paint, values: spread(rounds, mean), width: 2, dash });
      });
      lines.text = (v) => score(measure, v);
      lines.tick = tickScore(measure);
      lines.floor = 0;
      lines.ceiling = measure === "accuracy" ? 1 : null;
      lines.set(xs, series, { mark: known(target) ? { value: target, label: `target ${score(measure, target)}` } : null });
      const own = shown.shown === "own";
      setText($("#compare-curves-h"), `Learning curves: ${measureOf(shown)}`);
      const ranked = groups.map((group) => [group.label, ((own ? null : group.table.global) || group.table.own || {}).mean]).filter(([, v]) => known(v))
        .sort((a, b) => (measure === "accuracy" ? b[1] - a[1] : a[1] - b[1]));
      setText($("#compare-curves .note"), ranked.length ? `${own ? "Mean over clients of the models that they would use: their own where there are any, else the global one. " : ""}At the end, from the best: ${ranked.slice(0, 6).map(([label, v]) => `${label} ${score(measure, v)}`).join(", ")}.${missing(axis)}` : "");
      lines.plot.setAttribute("aria-label", `Learning curves. ${$("#compare-curves .note").textContent}`);
    }

    /** Who is not drawn over virtual time and energy, for want of a virtual clock, or over epsilon, for want of noise. */
    function missing(axis) {
      const bare = shown.groups.filter((group) => group.curve.rounds.length && !(group.curve[axis] || []).length).map((group) => group.label);
      return bare.length ? ` Not drawn, without ${axis === "epsilon" ? "noise" : "a virtual clock"}: ${bare.join(", ")}.` : "";
    }

    /** Who keeps no promise, and at which delta epsilon is. */
    function promises() {
      const { groups } = shown;
      const noisy = groups.filter((group) => known(group.delta));
      if (!noisy.length) return "";
      const deltas = [...new Set(noisy.map((group) => group.delta))];
      const at = deltas.length === 1 ? number(deltas[0]) : noisy.map((group) => `${number(group.delta)} (${group.label})`).join(", ");
      const open = noisy.filter((group) => !group.private).map((group) => group.label);
      return `Epsilon at delta = ${at}.${open.length ? ` In brackets, not private: noise follows from a seed, which keeps no promise: ${open.join(", ")}.` : ""}`;
    }

    function table() {
      const { groups, measure, target } = shown;
      const s = (v) => score(measure, v);
      const up = measure === "accuracy" ? 1 : -1;
      const machine = axes().seconds.label;
      const to = known(target) ? ` to ${s(target)}` : " to target";
      const columns = [["global", "Test set", s, up], ["own", "Client mean", s, up], ["pooled", "Pooled", s, up], ["std", "Std over clients", s, 0],
        ["p10", measure === "accuracy" ? "p10" : "p90", s, up], ["worst", "Worst client", s, up], ["newcomers", "Newcomers", s, up],
        ["gain", "Gain over local", null, 1], ["worse_off", "Worse off than local", null, -1],
        ["reached", "Reached", null, 0], ["rounds_to_target", `Rounds${to}`, (v) => number(v, 3), -1],
        ["virtual_seconds_to_target", `Virtual time${to}`, duration, -1], ["energy_to_target", `Energy${to}`, joules, -1],
        ["epsilon_to_target", `Epsilon${to}`, (v) => number(v, 3), -1], ["bytes_to_target", `Bytes${to}`, bytes, -1], ["seconds_to_target", `${machine}${to}`, duration, -1], ["rounds", "Rounds", (v) => number(v, 4), 0],
        ["virtual_seconds", "Virtual time", duration, 0], ["energy", "Energy", joules, 0], ["wasted", "Client time wasted", percent, 0], ["epsilon", "Epsilon", (v) => number(v, 3), 0], ["bytes", "Traffic", bytes, 0], ["seconds", machine, duration, 0]];
      const entry = (group, key) => { const e = (group.table || {})[key]; return known(e) ? { mean: e, std: null } : e && known(e.mean) ? e : null; };
      const open = (group, key) => key.startsWith("epsilon") && group.private === false; // nothing to win with
      const used = columns.filter(([key]) => groups.some((group) => entry(group, key)));
      $("#compare-table .gained").hidden = !used.some(([key]) => key === "gain");
      const best = Object.fromEntries(used.map(([key, , , sign]) => [key, sign && groups.length > 1 ? Math.max(...groups.map((g) => { const e = open(g, key) ? null : entry(g, key); return e ? sign * e.mean : -Infinity; })) : null]));
      const head = h("thead", null, h("tr", null, h("th", { scope: "col" }, "Setting"), h("th", { scope: "col", class: "right" }, "Runs"), used.map(([, text]) => h("th", { scope: "col", class: "right" }, text))));
      const body = groups.map((group, g) => {
        const dot = h("i", { class: "dot" });
        dot.style.setProperty("--paint", groupColor(g));
        return h("tr", null, h("th", { scope: "row" }, dot, group.label), h("td", { class: "right" }, String(group.runs.length)), used.map(([key, , text, sign]) => {
          const e = entry(group, key);
          if (key === "reached") return h("td", { class: "right" }, e ? `${e.mean} of ${group.runs.length}` : "–");
          const cell = e && (key === "gain" ? gained(measure, e) : key === "worse_off" ? share(measure, e, entry(group, "worse_by")) : pair(e, text));
          const wins = sign && e && !open(group, key) && sign * e.mean === best[key];
          return h("td", { class: wins ? "right best" : "right" }, !cell ? "–" : open(group, key) ? `(${cell})` : cell);
        }));
      });
      setText($("#compare-table .promises"), promises());
      $("#compare-table table").replaceChildren(head, h("tbody", null, body));
    }

    /** "+2.4 ± 1.7 pts" of an accuracy, "−0.02 ± 0.01" of a loss. */
    function gained(measure, { mean, std }) {
      const whole = gain(measure, mean);
      if (!std) return whole;
      return measure === "accuracy" ? whole.replace(" pts", ` ± ${(100 * std).toFixed(1)} pts`) : `${whole} ± ${number(std, 2)}`;
    }

    /** "20 ± 10 % (−4.2 pts)": how many are worse off, and by how much. */
    function share(measure, { mean, std }, by) {
      const whole = std ? percent(mean, 0).replace(/(?=\s?%)/, ` ± ${(100 * std).toFixed(0)}`) : percent(mean, 0);
      return by ? `${whole} (${gain(measure, -by.mean)})` : whole;
    }

    /** "92.4 ± 0.3 %": the unit once. */
    function pair({ mean, std }, text) {
      const whole = text(mean);
      if (!known(std) || std === 0) return whole;
      const [, figure, unit] = whole.match(/^(\S+)\s?(.*)$/);
      const spread = text(mean + std);
      const [, above, same] = spread.match(/^(\S+)\s?(.*)$/);
      if (same !== unit || unit.includes(" ")) return `${whole} ± ${text(std)}`;
      const digits = Math.max(0, ...[figure, above].map((f) => (f.split(".")[1] || "").length));
      const part = std * ((Number(figure) || 1) / (mean || 1));
      return `${figure} ± ${Math.abs(part).toFixed(digits)}${unit ? ` ${unit}` : ""}`;
    }

    function runTable(runs, hrefs) {
      const labels = new Map();
      const words = shown.shown === "own" ? "Client mean" : `Test ${shown.measure}`;
      shown.groups.forEach((group, g) => group.runs.forEach((name, i) => labels.set(name, { g, label: group.label, seed: (group.seeds || [])[i] })));
      $("#compare-runs table").replaceChildren(
        h("thead", null, h("tr", null, ["Run", "Setting", "Seed", "Status", "Rounds", words].map((text) => h("th", { scope: "col", class: text === words ? "right" : null }, text)))),
        h("tbody", null, runs.map((run) => {
          const found = labels.get(run.name) || {};
          const dot = h("i", { class: "dot" });
          if (found.label) dot.style.setProperty("--paint", groupColor(found.g));
          return h("tr", null, h("th", { scope: "row" }, h("a", { href: hrefs.run(run.name) }, run.name)), h("td", { class: "setting" }, found.label ? dot : null, found.label || "–"),
            h("td", { class: "seed" }, String(found.seed ?? "–")), h("td", { class: "status" }, pillOf(run.status)), h("td", { class: "rounds" }, count(run.round)),
            h("td", { class: "value right", "data-label": words.toLowerCase() }, score(shown.measure, run.value)));
        })));
    }

    return { show, ofRuns, again: () => { if (shown) { curves(); table(); Differences.show(shown); } } };
  })();

  return { RunList, Comparison };
})();
